"""The server: files over HTTP and live audio over WebSocket, as OpenAI's clients speak them, and a page to try it."""
