import { Component } from 'preact';
import { useLayoutEffect, useRef } from 'preact/hooks';
import { copyText } from './clipboard';
import { colour } from './highlight';
import { sanitise, toBlocks } from './markdown';

export function Markdown({ text }: { text: string }) {
  return (
    <div class="markdown">
      {toBlocks(text).map((html, index) => (
        <Block key={index} html={html} />
      ))}
    </div>
  );
}

/** One block. It is built anew only when it changes, so a selection in the text above survives the stream. */
class Block extends Component<{ html: string }> {
  override shouldComponentUpdate(next: { html: string }): boolean {
    return next.html !== this.props.html;
  }

  override render({ html }: { html: string }) {
    return <Content html={html} />;
  }
}

function Content({ html }: { html: string }) {
  const ref = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const content = sanitise(html);
    content.querySelectorAll('pre').forEach(frameCode);
    content.querySelectorAll('table').forEach(frameTable);
    ref.current?.replaceChildren(content);
  }, [html]);
  return <div class="block" ref={ref} />;
}

/** A code block with its language and a copy button. */
function frameCode(pre: HTMLPreElement): void {
  const code = pre.querySelector('code');
  const language = /language-([\w+#.-]+)/.exec(code?.className ?? '')?.[1] ?? 'text';
  const frame = document.createElement('figure');
  frame.className = 'code';
  const bar = document.createElement('figcaption');
  const label = document.createElement('span');
  label.textContent = language;
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'copy-code';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', 'Copy code');
  button.addEventListener('click', () => {
    void copyText((code ?? pre).textContent ?? '').then((done) => {
      button.textContent = done ? 'Copied' : 'Not copied';
      setTimeout(() => {
        button.textContent = 'Copy';
      }, 2000);
    });
  });
  bar.append(label, button);
  pre.replaceWith(frame);
  // Long lines scroll sideways: by keyboard too.
  pre.tabIndex = 0;
  pre.setAttribute('aria-label', `Code, ${language}`);
  pre.setAttribute('role', 'group');
  frame.append(bar, pre);
  if (code) colour(code, language.toLowerCase(), sanitise);
}

function frameTable(table: HTMLTableElement): void {
  const frame = document.createElement('div');
  frame.className = 'table';
  frame.tabIndex = 0;
  frame.setAttribute('role', 'group');
  frame.setAttribute('aria-label', 'Table');
  table.replaceWith(frame);
  frame.append(table);
}
