import { defineConfig } from 'vitest/config';

export default defineConfig({
  // The page is served under a configurable prefix: every URL in it is relative.
  base: './',
  build: {
    target: 'es2022',
    // The content security policy allows scripts, styles and images from files only, and no inline polyfill.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: { input: { index: 'index.html', share: 'share.html' } },
  },
  server: {
    proxy: {
      '/api': { target: process.env.CHATBOX_URL ?? 'http://127.0.0.1:8080/chatbox/', changeOrigin: true },
      '/ws': { target: process.env.CHATBOX_URL ?? 'http://127.0.0.1:8080/chatbox/', ws: true, changeOrigin: true },
    },
  },
  test: { include: ['test/**/*.test.ts'], environment: 'node' },
});
