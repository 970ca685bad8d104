import { useEffect } from 'preact/hooks';
import { token } from './auth';
import { generation, isEnded, toast } from './chat';
import { Composer } from './composer';
import { Dialogs } from './dialogs';
import { Header } from './header';
import { Log } from './log';
import { Notices } from './notices';
import { Sidebar } from './sidebar';
import { SignIn } from './signin';
import { Spoken } from './spoken';
import { drawerOpen, isPhone } from './ui';

export function App() {
  if (token.value === '') return <SignIn />;
  return (
    <div class="app">
      {isEnded.value ? null : (
        <a class="skip" href="#message" onClick={skip}>
          Skip to the message box
        </a>
      )}
      <Sidebar />
      <main class="main" inert={isPhone.value && drawerOpen.value}>
        <Header />
        <Notices />
        <Log key={`log-${generation.value}`} />
        <Composer key={`composer-${generation.value}`} />
      </main>
      <Dialogs />
      <Spoken />
      <Toast />
    </div>
  );
}

/** Not by the fragment: that one names the session. */
function skip(event: Event): void {
  event.preventDefault();
  document.getElementById('message')?.focus();
}

const TOAST_MS = 6_000;

function Toast() {
  const text = toast.value;
  useEffect(() => {
    if (text === null) return;
    const timer = setTimeout(() => {
      toast.value = null;
    }, TOAST_MS);
    return () => clearTimeout(timer);
  }, [text]);
  return (
    <div class="toast-place" role="alert">
      {text === null ? null : <div class="toast">{text}</div>}
    </div>
  );
}
