// limit: the least that a server can do which writes to every subscriber of a channel. One thread, one
// epoll, the frame of a publication built once, no settings, no limits, nothing but this protocol:
//
//   GET  /sub/CHANNEL  with the headers of a WebSocket: 101, and the socket hears the channel
//   POST /pub/CHANNEL  the body becomes one text frame for each subscriber; 200 when that is written
//
// limit PORT [coalesce]: with coalesce, publications that one wave of epoll brings leave in one write
// per subscriber, and are answered after it. What a full socket does not take waits in memory for the
// poller: nothing is lost, and nothing is bounded either. It listens on 127.0.0.1 only.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 1 << 17, BUCKETS = 1 << 15, WAVE = 512, MAX_BODY = 1 << 16 };

struct bytes { // of a malloc, grown by doubling
	char *at;
	uint32_t len, cap;
};

struct channel {
	struct channel *next;  // in its bucket
	struct channel *dirty; // with pending, in this wave
	int *subs;             // file descriptors
	uint32_t n, cap;
	struct bytes pending;
	char name[];
};

struct conn {
	struct channel *channel; // of a subscriber
	struct bytes *in;        // an incomplete request or frame
	struct bytes *out;       // what the socket did not take
	uint32_t index;          // in channel->subs
	uint8_t open, published;
};

static struct conn conns[MAX_FDS];
static struct channel *table[BUCKETS];
static struct channel *dirty_channels;
static int waiting[WAVE], n_waiting; // publishers answered after the wave
static int ep, coalesce;

static void die(const char *what) {
	perror(what);
	exit(1);
}

static void append(struct bytes *b, const void *p, size_t n) {
	if (b->len + n > b->cap) {
		size_t cap = b->cap ? b->cap : 256;
		while (cap < b->len + n) cap *= 2;
		if (cap > 1u << 30 || !(b->at = realloc(b->at, cap))) die("out of memory");
		b->cap = cap;
	}
	memcpy(b->at + b->len, p, n);
	b->len += n;
}

static void append_to(struct bytes **b, const void *p, size_t n) {
	if (!*b && !(*b = calloc(1, sizeof **b))) die("out of memory");
	append(*b, p, n);
}

static void drop(struct bytes **b) {
	if (!*b) return;
	free((*b)->at);
	free(*b);
	*b = NULL;
}

static struct channel *channel_of(const char *name, size_t n) {
	uint32_t h = 2166136261u;
	for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)name[i]) * 16777619u;
	struct channel **bucket = &table[h % BUCKETS];
	for (struct channel *c = *bucket; c; c = c->next)
		if (strlen(c->name) == n && !memcmp(c->name, name, n)) return c;
	struct channel *c = calloc(1, sizeof *c + n + 1);
	if (!c) die("out of memory");
	memcpy(c->name, name, n);
	c->next = *bucket;
	return *bucket = c;
}

static void hang_up(int fd) {
	struct conn *c = &conns[fd];
	if (c->channel) {
		int last = c->channel->subs[--c->channel->n];
		c->channel->subs[c->index] = last;
		conns[last].index = c->index;
	}
	drop(&c->in);
	drop(&c->out);
	memset(c, 0, sizeof *c);
	close(fd);
}

static void watch(int fd, int op, uint32_t events) {
	struct epoll_event ev = {.events = events, .data.fd = fd};
	if (epoll_ctl(ep, op, fd, &ev)) die("epoll_ctl");
}

// put writes without waiting. A broken socket is found by the next read.
static void put(int fd, const char *p, size_t n) {
	struct conn *c = &conns[fd];
	if (!c->out) {
		ssize_t w = write(fd, p, n);
		if (w == (ssize_t)n || (w < 0 && errno != EAGAIN)) return;
		if (w > 0) p += w, n -= w;
		watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
	}
	append_to(&c->out, p, n);
}

static void put_rest(int fd) {
	struct bytes *b = conns[fd].out;
	if (!b) return;
	ssize_t w = write(fd, b->at, b->len);
	if (w < 0) return;
	memmove(b->at, b->at + w, b->len - w);
	if ((b->len -= w)) return;
	drop(&conns[fd].out);
	watch(fd, EPOLL_CTL_MOD, EPOLLIN);
}

static void fan_out(struct channel *ch, const char *p, size_t n) {
	for (uint32_t i = 0; i < ch->n; i++) put(ch->subs[i], p, n);
}

static void answer(int fd) {
	static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
	put(fd, ok, sizeof ok - 1);
}

static void publish(int fd, struct channel *ch, const char *body, size_t n) {
	static char frame[MAX_BODY + 4];
	size_t h = 2;
	frame[0] = (char)0x81;
	if (n < 126) {
		frame[1] = (char)n;
	} else {
		frame[1] = 126, frame[2] = (char)(n >> 8), frame[3] = (char)n;
		h = 4;
	}
	memcpy(frame + h, body, n);
	if (!coalesce) {
		fan_out(ch, frame, h + n);
		answer(fd);
		return;
	}
	if (!ch->pending.len) ch->dirty = dirty_channels, dirty_channels = ch;
	append(&ch->pending, frame, h + n);
	if (!conns[fd].published) conns[fd].published = 1, waiting[n_waiting++] = fd;
}

static void end_wave(void) {
	while (dirty_channels) {
		struct channel *ch = dirty_channels;
		dirty_channels = ch->dirty;
		fan_out(ch, ch->pending.at, ch->pending.len);
		ch->pending.len = 0;
	}
	while (n_waiting) {
		int fd = waiting[--n_waiting];
		if (!conns[fd].published) continue; // hung up meanwhile
		conns[fd].published = 0;
		answer(fd);
	}
}

// SHA-1 (RFC 3174) of at most 119 bytes: the key of a handshake has 60.
static void sha1(const uint8_t *p, size_t n, uint8_t out[20]) {
	uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, w[80];
	uint8_t m[128] = {0};
	size_t blocks = n + 9 > 64 ? 2 : 1;
	memcpy(m, p, n);
	m[n] = 0x80;
	for (int i = 0; i < 8; i++) m[blocks * 64 - 1 - i] = (uint8_t)((uint64_t)n * 8 >> (8 * i));
	for (size_t b = 0; b < blocks; b++) {
		for (int i = 0; i < 16; i++) w[i] = (uint32_t)m[b * 64 + i * 4] << 24 | m[b * 64 + i * 4 + 1] << 16 | m[b * 64 + i * 4 + 2] << 8 | m[b * 64 + i * 4 + 3];
		for (int i = 16; i < 80; i++) {
			uint32_t x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
			w[i] = x << 1 | x >> 31;
		}
		uint32_t a[5];
		memcpy(a, h, sizeof a);
		for (int i = 0; i < 80; i++) {
			uint32_t f, k;
			if (i < 20) f = (a[1] & a[2]) | (~a[1] & a[3]), k = 0x5a827999;
			else if (i < 40) f = a[1] ^ a[2] ^ a[3], k = 0x6ed9eba1;
			else if (i < 60) f = (a[1] & a[2]) | (a[1] & a[3]) | (a[2] & a[3]), k = 0x8f1bbcdc;
			else f = a[1] ^ a[2] ^ a[3], k = 0xca62c1d6;
			uint32_t t = (a[0] << 5 | a[0] >> 27) + f + a[4] + k + w[i];
			a[4] = a[3], a[3] = a[2], a[2] = a[1] << 30 | a[1] >> 2, a[1] = a[0], a[0] = t;
		}
		for (int i = 0; i < 5; i++) h[i] += a[i];
	}
	for (int i = 0; i < 20; i++) out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void upgrade(int fd, const char *key, size_t n) {
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char text[64], accept[29], reply[160];
	uint8_t d[21] = {0};
	if (n != 24) {
		hang_up(fd);
		return;
	}
	memcpy(text, key, 24);
	memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
	sha1((uint8_t *)text, 60, d);
	for (int i = 0; i < 7; i++) {
		uint32_t v = (uint32_t)d[i * 3] << 16 | d[i * 3 + 1] << 8 | d[i * 3 + 2];
		for (int j = 0; j < 4; j++) accept[i * 4 + j] = alphabet[v >> (18 - 6 * j) & 63];
	}
	accept[27] = '=', accept[28] = 0;
	int len = snprintf(reply, sizeof reply, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept);
	put(fd, reply, (size_t)len);
}

static void subscribe(int fd, struct channel *ch) {
	if (ch->n == ch->cap) {
		ch->cap = ch->cap ? ch->cap * 2 : 1;
		if (!(ch->subs = realloc(ch->subs, ch->cap * sizeof *ch->subs))) die("out of memory");
	}
	conns[fd].channel = ch;
	conns[fd].index = ch->n;
	ch->subs[ch->n++] = fd;
}

// header finds the value of a header whose name is given in small letters with its colon, between p and end.
static const char *header(const char *p, const char *end, const char *name, size_t *n) {
	size_t len = strlen(name);
	while ((p = memchr(p, '\n', (size_t)(end - p)))) {
		if ((size_t)(end - ++p) <= len) return NULL;
		if (strncasecmp(p, name, len)) continue;
		for (p += len; *p == ' ';) p++;
		const char *stop = memchr(p, '\r', (size_t)(end - p));
		*n = stop ? (size_t)(stop - p) : 0;
		return p;
	}
	return NULL;
}

// request handles one request and returns its length, 0 when it is incomplete, -1 when it is none of ours.
static ssize_t request(int fd, const char *p, size_t n) {
	const char *body = memmem(p, n, "\r\n\r\n", 4);
	if (!body) return n > 8192 ? -1 : 0;
	body += 4;
	int pub = n > 10 && !memcmp(p, "POST /pub/", 10);
	if (!pub && !(n > 9 && !memcmp(p, "GET /sub/", 9))) return -1;
	const char *name = p + (pub ? 10 : 9), *space = memchr(name, ' ', (size_t)(body - name));
	if (!space) return -1;
	struct channel *ch = channel_of(name, (size_t)(space - name));
	size_t len;
	const char *v = header(p, body, pub ? "content-length:" : "sec-websocket-key:", &len);
	if (!v) return -1;
	if (!pub) {
		upgrade(fd, v, len);
		if (conns[fd].open) subscribe(fd, ch);
		return body - p;
	}
	size_t size = strtoul(v, NULL, 10);
	if (size > MAX_BODY) return -1;
	if ((size_t)(p + n - body) < size) return 0;
	publish(fd, ch, body, size);
	return body - p + (ssize_t)size;
}

// frame handles one frame of a client: a ping is answered, a close ends it, the rest is passed over.
static ssize_t frame(int fd, const char *p, size_t n) {
	if (n < 6) return 0;
	size_t len = (uint8_t)p[1] & 127;
	if (len > 125 || !((uint8_t)p[1] & 128)) return -1;
	if (n < 6 + len) return 0;
	int op = p[0] & 15;
	if (op == 8) return -1;
	if (op == 9) {
		char pong[127] = {(char)0x8a, (char)len};
		for (size_t i = 0; i < len; i++) pong[2 + i] = p[6 + i] ^ p[2 + i % 4];
		put(fd, pong, 2 + len);
	}
	return (ssize_t)(6 + len);
}

static void take(int fd) {
	static char buf[1 << 16];
	struct conn *c = &conns[fd];
	ssize_t n = read(fd, buf, sizeof buf);
	if (n < 0 && errno == EAGAIN) return;
	if (n <= 0) {
		hang_up(fd);
		return;
	}
	const char *p = buf;
	struct bytes *old = c->in;
	if (old) {
		append(old, buf, (size_t)n);
		p = old->at, n = old->len;
	}
	while (n > 0) {
		ssize_t used = c->channel ? frame(fd, p, (size_t)n) : request(fd, p, (size_t)n);
		if (!c->open) return;
		if (used < 0) {
			hang_up(fd);
			return;
		}
		if (!used) break;
		p += used, n -= used;
	}
	struct bytes *rest = NULL;
	if (n > 0) append_to(&rest, p, (size_t)n);
	drop(&c->in);
	c->in = rest;
}

int main(int argc, char **argv) {
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct epoll_event events[WAVE];
	int one = 1;
	if (argc < 2) {
		fprintf(stderr, "limit PORT [coalesce]\n");
		return 2;
	}
	addr.sin_port = htons((uint16_t)atoi(argv[1]));
	coalesce = argc > 2 && !strcmp(argv[2], "coalesce");
	signal(SIGPIPE, SIG_IGN);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (l < 0 || setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) || bind(l, (struct sockaddr *)&addr, sizeof addr) || listen(l, 4096)) die("listen");
	if ((ep = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
	watch(l, EPOLL_CTL_ADD, EPOLLIN);
	for (;;) {
		int n = epoll_wait(ep, events, WAVE, -1);
		if (n < 0 && errno != EINTR) die("epoll_wait");
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			if (fd != l) {
				if (events[i].events & EPOLLOUT) put_rest(fd);
				if (events[i].events & ~(uint32_t)EPOLLOUT) take(fd);
				continue;
			}
			int s;
			while ((s = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
				if (s >= MAX_FDS) {
					close(s);
					continue;
				}
				setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				conns[s].open = 1;
				watch(s, EPOLL_CTL_ADD, EPOLLIN);
			}
		}
		if (coalesce) end_wave();
	}
}
