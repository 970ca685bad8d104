import { effect, untracked } from '@preact/signals';
import { render } from 'preact';
import { sessionInAddress, takeToken } from './address';
import { App } from './app';
import { adopt, restoreToken, token } from './auth';
import { leave, sessionId, show, watchNetwork } from './chat';
import { forgetSessions, loadModels, loadSessions, sessions } from './sessions';

restoreToken();
watchNetwork();

let started = '';
effect(() => {
  const value = token.value;
  if (value === '') {
    started = '';
    untracked(forgetSessions);
    return;
  }
  // A token that replaces one in use changes nothing on the screen.
  if (started !== '') return;
  started = value;
  untracked(() => {
    show(sessionInAddress());
    void loadModels();
    void loadSessions();
  });
});

window.addEventListener('hashchange', () => {
  const fresh = takeToken();
  if (fresh === null) return;
  leave();
  token.value = '';
  adopt(fresh);
});

window.addEventListener('popstate', () => {
  const id = sessionInAddress();
  if (token.value === '' || id === '' || id === sessionId.value) return;
  show(id, sessions.value.find((one) => one.sessionId === id)?.status === 'SESSION_STATUS_ENDED');
});

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && token.value !== '') void loadSessions();
});

const root = document.getElementById('app');
if (root) render(<App />, root);
