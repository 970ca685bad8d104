import { useEffect, useState } from 'preact/hooks';
import { randomId } from '../client';
import { BASE } from './address';
import { api, sessionId } from './chat';
import { copyText } from './clipboard';
import { dateAndTime } from './ui';
import { sayError } from './wording';

interface Link {
  shareId?: string;
  live?: boolean;
  createTime?: string;
  expireTime?: string;
  revoked?: boolean;
}

const DAY_MS = 86_400_000;
const LIFETIMES = [
  { label: 'For a day', days: 1 },
  { label: 'For a week', days: 7 },
  { label: 'For 30 days', days: 30 },
  { label: 'Until it is revoked', days: 0 },
];

/** Makes links of the conversation, and revokes them. */
export function Sharing({ onCancel }: { onCancel(): void }) {
  const [links, setLinks] = useState<readonly Link[]>([]);
  const [live, setLive] = useState(false);
  const [days, setDays] = useState(7);
  const [made, setMade] = useState('');
  const [said, setSaid] = useState('');
  const id = sessionId.value;

  const attempt = (work: () => Promise<void>, failed: string) => {
    setSaid('');
    work().catch((error: unknown) => setSaid(sayError(error, failed)));
  };
  const load = async () => setLinks((await api.shares(id)).shares ?? []);
  useEffect(() => attempt(load, 'The links could not be loaded.'), [id]);

  const make = async () => {
    const expires = days === 0 ? {} : { expireTime: new Date(Date.now() + days * DAY_MS).toISOString() };
    const answer = await api.createShare(id, { live, requestId: randomId(), ...expires });
    // Behind the hash: what stands there is sent to no server and is in no log.
    const url = new URL('share.html', BASE);
    url.hash = `${answer.share?.shareId ?? ''}.${answer.secret ?? ''}`;
    setMade(url.href);
    await load();
  };
  const copy = async () => setSaid((await copyText(made)) ? 'Copied' : 'Select the link and copy it');
  const working = links.filter((link) => !link.revoked && !(Date.parse(link.expireTime ?? '') <= Date.now()));

  return (
    <>
      <h2 id="question">Share this conversation</h2>
      <p>Whoever has the link can read it. Names of people are not shown.</p>
      <div class="share-choices">
        <select aria-label="What the link shows" value={live ? 'live' : 'now'} onChange={(event) => setLive(event.currentTarget.value === 'live')}>
          <option value="now">As it is now</option>
          <option value="live">What is added, too</option>
        </select>
        <select aria-label="How long the link works" value={days} onChange={(event) => setDays(Number(event.currentTarget.value))}>
          {LIFETIMES.map((one) => (
            <option key={one.days} value={one.days}>
              {one.label}
            </option>
          ))}
        </select>
        <button type="button" class="button" onClick={() => attempt(make, 'The link could not be made.')}>
          Make a link
        </button>
      </div>
      {made === '' ? null : (
        <div class="share-made">
          <input class="dialog-input" readOnly aria-label="The link" value={made} onFocus={(event) => event.currentTarget.select()} />
          <button type="button" class="button" onClick={() => attempt(copy, 'The link could not be copied.')}>
            Copy
          </button>
        </div>
      )}
      <p role="status">{said}</p>
      {working.length === 0 ? null : (
        <ul class="share-links" aria-label="Links that work">
          {working.map((link) => (
            <li key={link.shareId}>
              <span>
                {link.live ? 'Follows the conversation' : 'As it was'} · {dateAndTime(link.createTime)}
                {link.expireTime ? ` · until ${dateAndTime(link.expireTime)}` : ''}
              </span>
              <button
                type="button"
                class="link"
                onClick={() =>
                  attempt(async () => {
                    await api.revokeShare(id, link.shareId ?? '');
                    await load();
                  }, 'The link could not be revoked.')
                }
              >
                Revoke
              </button>
            </li>
          ))}
        </ul>
      )}
      <div class="dialog-actions">
        <button type="button" class="button quiet" onClick={onCancel}>
          Close
        </button>
      </div>
    </>
  );
}
