// What the tests in Chromium let the page do. Everything that it hears goes into one list, in order.
"use strict";
{
  const heard = [];
  const hear = (event, more) => heard.push(JSON.parse(JSON.stringify({ event, ...more })));
  let pusher, echo;

  const options = ({ host, port, transports, backend, user }) => ({
    cluster: "petrel", wsHost: host, wsPort: port, httpHost: host, httpPort: port, forceTLS: false, enabledTransports: transports,
    channelAuthorization: { endpoint: `${backend}/pusher/auth?user=${user}`, transport: "ajax" },
    userAuthentication: { endpoint: `${backend}/pusher/user-auth?user=${user}`, transport: "ajax" },
  });

  function watch(connection) {
    connection.bind("state_change", ({ current }) => hear(`state:${current}`, { transport: pusher?.connection.connection?.transport.name }));
    connection.bind("error", (error) => hear("error", { error }));
  }

  window.conformance = {
    heard,
    connect(key, where) {
      pusher = new Pusher(key, options(where));
      watch(pusher.connection);
    },
    state: () => ({ state: pusher.connection.state, socket: pusher.connection.socket_id, transport: pusher.connection.connection?.transport.name }),
    subscribe(name) {
      const channel = pusher.subscribe(name);
      channel.bind_global((event, data) => event.startsWith("client-") || hear(`${name}:${event}`, { data }));
      for (const event of ["client-hello", "client-wave"]) channel.bind(event, (data, metadata) => hear(`${name}:${event}`, { data, user: metadata?.user_id }));
    },
    members: (name) => ({ count: pusher.channel(name).members.count, me: pusher.channel(name).members.me, all: pusher.channel(name).members.members }),
    trigger: (name, event, data) => pusher.channel(name).trigger(event, data),
    signin() {
      pusher.user.bind_global((event, data) => hear(`user:${event}`, { data }));
      pusher.bind("pusher:signin_success", () => hear("signed in"));
      pusher.signin();
    },
    disconnect: () => pusher.disconnect(),
    echo(key, where, broadcaster) {
      const { channelAuthorization, ...rest } = options(where);
      echo = new Echo.default({ broadcaster, key, ...rest, authEndpoint: channelAuthorization.endpoint });
      pusher = echo.connector.pusher;
      watch(pusher.connection);
    },
    listen(kind, name, event) {
      const channel = echo[kind](name);
      channel.listen(event, (data) => hear(`${kind}:${event}`, { data }));
      channel.subscribed(() => hear(`${kind}:subscribed`));
      if (kind === "private") channel.listenForWhisper("typing", (data) => hear("whisper", { data }));
    },
    whisper: (name, data) => echo.private(name).whisper("typing", data),
    join(name) {
      echo.join(name).here((users) => hear("here", { users })).joining((user) => hear("joining", { user })).leaving((user) => hear("leaving", { user }));
    },
    leave: (name) => echo.leave(name),
  };
  window.ready = true;
}
