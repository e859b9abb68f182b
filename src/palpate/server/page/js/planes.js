// The three planes in the RAS grid: which axes run across and up, and which one counts the slices.

export const PLANES = {
  axial: { across: 0, up: 1, depth: 2, type: 0, letter: "k" },
  coronal: { across: 0, up: 2, depth: 1, type: 1, letter: "j" },
  sagittal: { across: 1, up: 2, depth: 0, type: 2, letter: "i" },
};

/** The ends of the axes: towards low and high indices. */
export const SIDES = [["L", "R"], ["P", "A"], ["F", "H"]];

export const sameSlice = (plane, a, b) => a[PLANES[plane].depth] === b[PLANES[plane].depth];
