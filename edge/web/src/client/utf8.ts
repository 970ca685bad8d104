const encoder = new TextEncoder();
// A leading byte order mark is part of the text.
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** Length in UTF-8 bytes, the unit of the contract's limits and offsets. */
export function utf8Length(text: string): number {
  return encoder.encode(text).length;
}

/** The first `length` bytes of a text; `undefined` when it is shorter. Offsets of the wire lie on character boundaries. */
export function utf8Prefix(text: string, length: number): string | undefined {
  if (length === 0) return '';
  const bytes = encoder.encode(text);
  if (bytes.length < length) return undefined;
  return bytes.length === length ? text : decoder.decode(bytes.subarray(0, length));
}
