import { useEffect, useRef, useState } from 'preact/hooks';
import { isFinished } from '../client';
import { generation, isEnded, view } from './chat';
import { nameOf, sayFinish, sayStatus } from './wording';

/** A connection that heals within this time is not worth a word. */
const SETTLE_MS = 1_500;
const MAX_SPOKEN = 1_000;

/** What a screen reader is told: lasting changes of the connection, and whole answers instead of every word of them. */
export function Spoken() {
  return (
    <>
      <div class="offscreen" role="status">
        {useConnection()}
      </div>
      <Answer key={generation.value} />
    </>
  );
}

function Answer() {
  return (
    <div class="offscreen" role="status" id="spoken-answer">
      {useAnswer()}
    </div>
  );
}

function useConnection(): string {
  const { spoken } = sayStatus(view.value.status, 0);
  const [said, setSaid] = useState('');
  const silent = isEnded.value;
  useEffect(() => {
    const timer = setTimeout(() => setSaid(silent ? 'This conversation has ended' : spoken), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [spoken, silent]);
  return said;
}

function useAnswer(): string {
  const { state, runningReply } = view.value;
  const watched = useRef<string | null>(null);
  const [said, setSaid] = useState('');
  useEffect(() => {
    if (runningReply !== null && runningReply !== watched.current) {
      watched.current = runningReply;
      setSaid('The assistant is answering');
      return;
    }
    if (runningReply !== null || watched.current === null) return;
    const item = state.items.findLast((one) => one.id === watched.current);
    watched.current = null;
    if (item?.kind !== 'message' || !isFinished(item.message)) return;
    const text = item.message.text ?? '';
    const finish = sayFinish(item.message.reply?.finishReason);
    const body = text.length > MAX_SPOKEN ? `${text.slice(0, MAX_SPOKEN)}…` : text;
    setSaid(`${nameOf(item.message.sender)}: ${body}${finish ? `. ${finish}` : ''}`);
  }, [runningReply, state.items]);
  return said;
}
