// Markdown of a message, block by block, as sanitised HTML. The text is a stranger's: raw HTML in it is shown as text, and
// what the renderer made of it passes an allow-list besides.
import DOMPurify from 'dompurify';
import { Marked, type Tokens } from 'marked';

const SAFE_LINK = /^(?:https?:|mailto:)/i;

const ALLOWED_TAGS = [
  ...['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'blockquote', 'pre', 'code', 'ul', 'ol', 'li'],
  ...['strong', 'em', 'del', 'a', 'span', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
];

const purify = DOMPurify(window);
purify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName !== 'A') return;
  node.setAttribute('rel', 'noopener noreferrer nofollow');
  node.setAttribute('target', '_blank');
});

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: (token: Tokens.HTML | Tokens.Tag) => escape(token.text),
    // A picture would tell its host who reads this, and the page's policy forbids it: the link remains.
    image: ({ href, text }: Tokens.Image) =>
      isSafeLink(href) ? `<a href="${escape(href)}">${escape(text || href)}</a>` : escape(text),
    link({ href, tokens }: Tokens.Link) {
      const text = this.parser.parseInline(tokens);
      return isSafeLink(href) ? `<a href="${escape(href)}">${text}</a>` : text;
    },
    checkbox: ({ checked }: Tokens.Checkbox) => (checked ? '☑ ' : '☐ '),
  },
});

function isSafeLink(href: string): boolean {
  return SAFE_LINK.test(href.trim());
}

function escape(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;');
}

/** The blocks of a text as HTML. While a text grows only its last blocks change. */
export function toBlocks(text: string): string[] {
  const tokens = marked.lexer(text);
  return tokens.filter((token) => token.type !== 'space').map((token) => marked.parser([token]));
}

export function sanitise(html: string): DocumentFragment {
  return purify.sanitize(html, {
    ALLOWED_TAGS,
    ALLOWED_ATTR: ['href', 'class', 'align', 'start', 'rel', 'target'],
    ALLOWED_URI_REGEXP: SAFE_LINK,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}
