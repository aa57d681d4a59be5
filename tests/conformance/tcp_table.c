/* Options of a TCP socket that are numbers: read, set, read again; and what an accepted one has. */
#include "case.h"

#include <netinet/tcp.h>

/* Where the value read is the kernel's own affair, only the call's outcome is compared. */
enum { PLAIN, VARIES };

static const struct option {
    const char *label;
    int level, name, varies;
    int values[3];
} table[] = {
#define SOL(NAME, ...) {#NAME, SOL_SOCKET, NAME, __VA_ARGS__}
#define TCP(NAME, ...) {#NAME, IPPROTO_TCP, NAME, __VA_ARGS__}
#define IP(NAME, ...) {#NAME, IPPROTO_IP, NAME, __VA_ARGS__}
    /* First: the kernel has none while it looks for a route, after SO_DONTROUTE or IP_TOS. */
    IP(IP_MTU, PLAIN, {1, 1, 1}),
    SOL(SO_DEBUG, PLAIN, {1, 0, 1}),
    SOL(SO_REUSEADDR, PLAIN, {1, 0, 1}),
    SOL(SO_TYPE, PLAIN, {1, 0, 1}),
    SOL(SO_ERROR, PLAIN, {1, 0, 1}),
    SOL(SO_DONTROUTE, PLAIN, {1, 0, 0}),
    SOL(SO_BROADCAST, PLAIN, {1, 0, 1}),
    SOL(SO_KEEPALIVE, PLAIN, {1, 0, 7}),
    SOL(SO_OOBINLINE, PLAIN, {1, 0, 1}),
    SOL(SO_PRIORITY, PLAIN, {1, 6, 5}),
    SOL(SO_REUSEPORT, PLAIN, {0, 0, 0}),
    SOL(SO_RCVLOWAT, PLAIN, {0, 9, 1}),
    SOL(SO_SNDLOWAT, PLAIN, {0, 9, 1}),
    SOL(SO_ACCEPTCONN, PLAIN, {0, 1, 0}),
    SOL(SO_MARK, PLAIN, {0, 0, 0}),
    SOL(SO_PROTOCOL, PLAIN, {6, 6, 6}),
    SOL(SO_DOMAIN, PLAIN, {2, 2, 2}),
    SOL(SO_TIMESTAMP, PLAIN, {0, 0, 0}),
    SOL(SO_TIMESTAMPNS, PLAIN, {0, 0, 0}),
    SOL(SO_BUSY_POLL, PLAIN, {0, 10, 0}),
    SOL(SO_INCOMING_CPU, VARIES, {0, 0, 0}),
    SOL(SO_INCOMING_NAPI_ID, VARIES, {0, 0, 0}),
    SOL(SO_COOKIE, VARIES, {0, 0, 0}),
    SOL(SO_SNDBUF, VARIES, {0, 0, 0}),
    SOL(SO_RCVBUF, VARIES, {0, 0, 0}),
    SOL(SO_SNDBUF, PLAIN, {1, 100000, 50000}),
    SOL(SO_RCVBUF, PLAIN, {1, 100000, 50000}),
    SOL(SO_PEEK_OFF, PLAIN, {-1, -1, -1}),
    TCP(TCP_NODELAY, PLAIN, {1, 0, 5}),
    TCP(TCP_MAXSEG, PLAIN, {1, 70000, 1000}),
    TCP(TCP_CORK, PLAIN, {1, 0, 0}),
    TCP(TCP_KEEPIDLE, PLAIN, {0, 40000, 99}),
    TCP(TCP_KEEPINTVL, PLAIN, {0, 40000, 99}),
    TCP(TCP_KEEPCNT, PLAIN, {0, 200, 9}),
    TCP(TCP_SYNCNT, PLAIN, {0, 200, 4}),
    TCP(TCP_LINGER2, PLAIN, {-1, 10, 200}),
    TCP(TCP_DEFER_ACCEPT, PLAIN, {0, 0, 0}),
    TCP(TCP_WINDOW_CLAMP, VARIES, {10, 60000, 60000}),
    TCP(TCP_QUICKACK, PLAIN, {1, 0, 1}),
    TCP(TCP_USER_TIMEOUT, PLAIN, {-1, 1234, 0}),
    TCP(TCP_THIN_LINEAR_TIMEOUTS, PLAIN, {2, 1, 0}),
    TCP(TCP_THIN_DUPACK, PLAIN, {2, 1, 0}),
    TCP(TCP_NOTSENT_LOWAT, PLAIN, {16384, -1, 0}),
    TCP(TCP_SAVE_SYN, PLAIN, {0, 0, 0}),
    TCP(TCP_FASTOPEN_CONNECT, PLAIN, {2, 0, 0}),
    TCP(TCP_FASTOPEN_NO_COOKIE, PLAIN, {2, 1, 0}),
    TCP(TCP_TIMESTAMP, VARIES, {1, 1, 1}),
    TCP(TCP_INQ, PLAIN, {2, 1, 0}),
    TCP(TCP_TX_DELAY, PLAIN, {0, 0, 0}),
    TCP(9999, PLAIN, {1, 1, 1}),
    IP(IP_TOS, PLAIN, {0x10, 300, 8}),
    IP(IP_TTL, PLAIN, {0, 77, 256}),
    IP(IP_RECVERR, PLAIN, {1, 0, 0}),
    IP(IP_MTU_DISCOVER, PLAIN, {IP_PMTUDISC_DO, 99, IP_PMTUDISC_WANT}),
    IP(IP_FREEBIND, PLAIN, {1, 0, 0}),
    IP(IP_BIND_ADDRESS_NO_PORT, PLAIN, {1, 0, 1}),
    IP(IP_MINTTL, PLAIN, {0, 0, 0}),
    IP(IP_PKTINFO, PLAIN, {1, 0, 1}),
    IP(IP_RECVTOS, PLAIN, {1, 0, 1}),
    IP(9999, PLAIN, {1, 1, 1}),
};
enum { ROWS = sizeof table / sizeof *table };

static void read_row(int fd, const struct option *row)
{
    int got[2] = {-7, -7};
    socklen_t length = sizeof got;
    int result = getsockopt(fd, row->level, row->name, got, &length);
    if (result != 0)
        line("  get %s: %s", row->label, strerrorname_np(errno));
    else if (row->varies)
        line("  get %s: %u bytes", row->label, length);
    else
        line("  get %s: %d, %u bytes", row->label, got[0], length);
}

static void set_row(int fd, const struct option *row, int value)
{
    int result = setsockopt(fd, row->level, row->name, &value, sizeof value);
    line("  set %s %d: %s", row->label, value, result == 0 ? "ok" : strerrorname_np(errno));
}

static void all_rows(int fd)
{
    for (int i = 0; i < ROWS; i++) {
        read_row(fd, &table[i]);
        for (int j = 0; j < 3; j++) {
            set_row(fd, &table[i], table[i].values[j]);
            read_row(fd, &table[i]);
        }
    }
}

CASE(tcp_table_connected, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    all_rows(fd);
    value("write", write(fd, "still", 5));
    receive(fd, 0);
}

CASE(tcp_table_before, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    all_rows(fd);
    connect_to(fd, peer4, T_ECHO);
    for (int i = 0; i < ROWS; i++)
        read_row(fd, &table[i]);
    value("write", write(fd, "still", 5));
    receive(fd, 0);
}

CASE(tcp_table_listener, ACCELERATED)
{
    int fd = listener(host4, 6260, 5);
    all_rows(fd);
    line("%s", peer("dial %s 6260 s5 w", host4));
    int one = accept(fd, NULL, NULL);
    done("accept", one);
    for (int i = 0; i < ROWS; i++)
        read_row(one, &table[i]);
    all_rows(one);
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
}
