"""Everything palpate raises on purpose.

    PalpateError
    ├── InputError               something you gave cannot be used
    │   ├── FormatError          a file is damaged, unsafe, or of a kind we do not read
    │   │   └── SeriesError      DICOM files that do not make one complete series
    │   ├── DatasetError         a folder of cases that does not fit together (pairs, grids, labels, splits)
    │   ├── GeometryError        an affine or spacing that places voxels nowhere
    │   ├── ImageError           pixels that cannot be segmented (empty, constant, not finite)
    │   ├── PromptError          a box, point, scribble or mask that makes no sense on its image
    │   │   └── UnsupportedPrompt    a prompt of a kind that this model does not take
    │   └── SettingError         an option whose value does not exist (window, axis, device, ...)
    ├── ModelError
    │   ├── UnknownModel         no model of that name
    │   └── WeightsError         weights are missing, changed, truncated or belong to something else
    └── OutputError              a result cannot be written where you asked

Catch a branch. Every message says what came, what was needed and what to do next.
"""


class PalpateError(Exception):
    """Anything palpate raises on purpose."""


class InputError(PalpateError):
    """Something you gave cannot be used."""


class FormatError(InputError):
    """A file is damaged, unsafe, or of a kind that is not read."""


class SeriesError(FormatError):
    """DICOM files do not make one complete series."""


class DatasetError(InputError):
    """A folder of cases does not fit together: missing pairs, grids that differ, unexpected labels, splits."""


class GeometryError(InputError):
    """An affine or a spacing places the voxels nowhere."""


class ImageError(InputError):
    """The pixels cannot be segmented: none, all equal, or not finite."""


class PromptError(InputError):
    """A prompt makes no sense on its image."""


class UnsupportedPrompt(PromptError):
    """This model does not take a prompt of this kind."""


class SettingError(InputError):
    """An option has a value that does not exist."""


class ModelError(PalpateError):
    """A model cannot be had."""


class UnknownModel(ModelError):
    """No model has that name."""


class WeightsError(ModelError):
    """Weights are missing, changed, truncated or belong to something else."""


class OutputError(PalpateError):
    """A result cannot be written where you asked."""
