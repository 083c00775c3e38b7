import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// `npm run dev` serves the page and passes everything else to a server: PETREL_URL, by default the SDK's fake one.
const target = process.env.PETREL_URL ?? "http://127.0.0.1:8090";

export default defineConfig({
  plugins: [svelte()],
  resolve: { alias: { "@petrel-chat/sdk": new URL("../sdk/js/src/index.ts", import.meta.url).pathname } },
  build: {
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // the content security policy allows nothing inline
    reportCompressedSize: false,
    rollupOptions: { input: { index: new URL("index.html", import.meta.url).pathname, pusher: new URL("examples/pusher.html", import.meta.url).pathname } },
  },
  server: { fs: { allow: [".."] }, proxy: { "/v1": { target, ws: true }, "/demo": target } },
});
