import { signal } from '@preact/signals';

/** The side bar covers the page instead of standing beside it. Must be the width in layout.css. */
const phone = window.matchMedia('(max-width: 820px)');

export const isPhone = signal(phone.matches);
phone.addEventListener('change', () => {
  isPhone.value = phone.matches;
  drawerOpen.value = false;
});

export const drawerOpen = signal(false);

const time = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });

export function clock(timestamp: string | undefined): string {
  return format(time, timestamp);
}

export function dateAndTime(timestamp: string | undefined): string {
  return format(full, timestamp);
}

/** A time for today, a day for before. */
export function when(timestamp: string | undefined): string {
  const date = new Date(timestamp ?? '');
  return date.toDateString() === new Date().toDateString() ? format(time, timestamp) : format(day, timestamp);
}

function format(style: Intl.DateTimeFormat, timestamp: string | undefined): string {
  const value = Date.parse(timestamp ?? '');
  return Number.isNaN(value) ? '' : style.format(value);
}
