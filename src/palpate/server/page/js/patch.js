// A patch: the values of a window of the label map, {from, to, data}, both ends inside, i fastest.

/** {from, to, size, values} of what the server sends, or null. */
export async function unpacked(patch) {
  if (patch === null) return null;
  const packed = Uint8Array.from(atob(patch.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  return { from: patch.from, size: patch.to.map((last, axis) => last - patch.from[axis] + 1), values };
}

/** The window of a map that a patch covers, copied. */
export function cut(map, shape, { from, size }) {
  const values = new Uint8Array(size[0] * size[1] * size[2]);
  eachRow(shape, from, size, (there, here) => values.set(map.subarray(there, there + size[0]), here));
  return { from, size, values };
}

/** Write a patch into a map. */
export function paste(map, shape, { from, size, values }) {
  eachRow(shape, from, size, (there, here) => map.set(values.subarray(here, here + size[0]), there));
}

function eachRow(shape, from, size, act) {
  let here = 0;
  for (let k = from[2]; k < from[2] + size[2]; k++) {
    for (let j = from[1]; j < from[1] + size[1]; j++) {
      act(from[0] + shape[0] * (j + shape[1] * k), here);
      here += size[0];
    }
  }
}
