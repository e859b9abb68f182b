import pytest

from palpate.models.lite_medsam import LiteMedSAM
from tiny_networks import tiny_lite_medsam


@pytest.fixture
def tiny_model() -> LiteMedSAM:
    return tiny_lite_medsam()
