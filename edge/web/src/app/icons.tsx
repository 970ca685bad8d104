// Line icons, 24 by 24, drawn in the colour of the text around them.
const PATHS = {
  send: 'M12 19V5M6 11l6-6 6 6',
  stop: 'M7.5 7.5h9v9h-9z',
  plus: 'M12 5v14M5 12h14',
  menu: 'M4 7h16M4 12h16M4 17h10',
  close: 'M6 6l12 12M18 6L6 18',
  copy: 'M9 9h10v11H9zM5 15V4h10',
  check: 'M5 12.5l4.5 4.500L19 7.5',
  down: 'M12 5v14M6 13l6 6 6-6',
  leave: 'M14 5h5v14h-5M15 12H4M8 8l-4 4 4 4',
  end: 'M4 7h16M4 7v12h16V7M8 4h8v3M9.5 12h5',
  pencil: 'M5 19l1-4L16 5l3 3L9 18zM14 7l3 3',
  share: 'M12 15V4M8 8l4-4 4 4M6 12v8h12v-8',
  search: 'M11 5a6 6 0 1 1 0 12 6 6 0 0 1 0-12M15.500 15.500L20 20',
  trash: 'M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5',
  person: 'M12 4a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM4.500 20a7.500 7.500 0 0 1 15 0',
  retry: 'M19 12a7 7 0 1 1-2.2-5.100M19 4v4h-4',
} as const;

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <path class="mark-body" d="M8 3h16a5 5 0 0 1 5 5v11a5 5 0 0 1-5 5h-7l-6.3 5.300A1 1 0 0 1 9 28.500V24H8a5 5 0 0 1-5-5V8a5 5 0 0 1 5-5z" />
      <path class="mark-lines" d="M10 11h12M10 16.500h7" />
    </svg>
  );
}
