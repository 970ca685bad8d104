// Colours for code, loaded when the first block of a known language is shown.
import type { HLJSApi } from 'highlight.js';

/** Colouring is not worth a stutter. */
const MAX_LENGTH = 20_000;

let engine: HLJSApi | null = null;
let loading: Promise<void> | null = null;

/** Fills a code element with coloured text, at once or as soon as the engine is there. */
export function colour(code: HTMLElement, language: string, sanitise: (html: string) => DocumentFragment): void {
  if ((code.textContent ?? '').length > MAX_LENGTH) return;
  const fill = () => {
    if (!engine?.getLanguage(language)) return;
    const { value } = engine.highlight(code.textContent ?? '', { language, ignoreIllegals: true });
    code.replaceChildren(sanitise(value));
  };
  if (engine) fill();
  else void load().then(fill, () => undefined);
}

function load(): Promise<void> {
  loading ??= import('./languages').then((module) => {
    engine = module.default;
  });
  return loading;
}
