/* TCP: options, flags and signals that few programs use. */
#include "case.h"

#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

static int set(int fd, int level, int name, int to)
{
    return setsockopt(fd, level, name, &to, sizeof to);
}

/* recvmsg() with the flags and control messages that it gives. */
static void message(int fd, size_t most, int flags)
{
    char bytes[64], ancillary[256];
    struct iovec part = {bytes, most};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = ancillary,
                            .msg_controllen = sizeof ancillary};
    long got = recvmsg(fd, &header, flags);
    content("recvmsg", bytes, got);
    if (got < 0)
        return;
    line("  flags %x control %zu", header.msg_flags, header.msg_controllen);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        line("  level %d type %d length %zu", c->cmsg_level, c->cmsg_type, c->cmsg_len);
        if (c->cmsg_level == IPPROTO_TCP)
            line("  inq %d", *(int *)CMSG_DATA(c));
    }
}

/* Waits for the peer's FIN, so that everything before it is there. */
static void wait_for_end(int fd)
{
    struct pollfd entry = {fd, POLLRDHUP, 0};
    poll(&entry, 1, 3000);
}

CASE(tcp_inq, ACCELERATED)
{
    static char bytes[40000];
    int local = listener(host4, 6300, 5);
    value("TCP_INQ", set(local, IPPROTO_TCP, TCP_INQ, 1));
    peer("dial %s 6300 s40000 f w", host4);
    int fd = accept(local, NULL, NULL);
    done("accept", fd);
    wait_for_end(fd);
    message(fd, 10, 0);
    message(fd, 10, MSG_PEEK);
    message(fd, 0, 0);
    message(fd, 10, MSG_CMSG_CLOEXEC);
    struct iovec part = {bytes, 1};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = bytes};
    header.msg_controllen = 4;
    value("no room for control", recvmsg(fd, &header, 0));
    line("  flags %x control %zu", header.msg_flags, header.msg_controllen);
    value("WAITALL", recv(fd, bytes, 39978, MSG_WAITALL));
    message(fd, 10, 0);
    message(fd, 10, 0);
}

/* Flags, addresses and control messages that a connection ignores, and those that it refuses. */
CASE(tcp_send_arguments, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    struct to to = at(peer4, T_ECHO);
    char bytes[64] = "hello";
    union {
        struct cmsghdr header;
        char room[64];
    } control = {.header = {CMSG_LEN(4), SOL_SOCKET, 99}};
    struct iovec part = {bytes, 5};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = CMSG_SPACE(4)};
    value("unknown", sendmsg(fd, &header, 0));
    control.header.cmsg_len = 3;
    value("short", sendmsg(fd, &header, 0));
    control.header.cmsg_len = 300;
    value("long", sendmsg(fd, &header, 0));
    control.header.cmsg_len = CMSG_LEN(4);
    static const int known[][2] = {{IPPROTO_IP, IP_TTL},     {IPPROTO_TCP, 99},
                                   {SOL_SOCKET, SCM_RIGHTS}, {SOL_SOCKET, SO_MARK},
                                   {SOL_SOCKET, SO_PRIORITY}};
    for (int i = 0; i < 5; i++) {
        control.header.cmsg_level = known[i][0];
        control.header.cmsg_type = known[i][1];
        value("known", sendmsg(fd, &header, 0));
    }
    header.msg_control = (void *)8;
    value("nowhere", sendmsg(fd, &header, 0));
    header.msg_control = NULL;
    value("null", sendmsg(fd, &header, 0));
    header.msg_control = &control;
    header.msg_controllen = 5;
    value("tiny", sendmsg(fd, &header, 0));
    header.msg_controllen = 1 << 30;
    value("huge", sendmsg(fd, &header, 0));
    value("address", sendto(fd, bytes, 5, 0, (void *)&to.at, to.length));
    value("short address", sendto(fd, bytes, 5, 0, (void *)&to.at, 3));
    value("long address", sendto(fd, bytes, 5, 0, (void *)&to.at, 1000));
    value("length alone", sendto(fd, bytes, 5, 0, NULL, 1000));
    value("address nowhere", sendto(fd, bytes, 5, 0, (void *)8, 16));
    value("FASTOPEN", sendto(fd, bytes, 5, MSG_FASTOPEN, (void *)&to.at, to.length));
    value("FASTOPEN alone", send(fd, bytes, 5, MSG_FASTOPEN));
    static const int flags[] = {MSG_EOR,     MSG_CONFIRM, MSG_DONTROUTE, MSG_PROXY,    MSG_TRUNC,
                                MSG_WAITALL, MSG_PEEK,    MSG_ERRQUEUE,  MSG_ZEROCOPY, MSG_SYN,
                                MSG_BATCH,   MSG_FIN,     MSG_RST,       0x100000};
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
        line("flag %x", flags[i]);
        value("send", send(fd, bytes, 5, flags[i]));
    }
    for (int waiting = 0; waiting < 65; pause_ms(1))
        ioctl(fd, FIONREAD, &waiting);
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
        if (flags[i] != MSG_ERRQUEUE && flags[i] != MSG_TRUNC) {
            line("flag %x", flags[i]);
            value("recv", recv(fd, bytes, 2, flags[i]));
        }
    socklen_t length = -1;
    value("negative length", recvfrom(fd, bytes, 1, 0, (void *)&to.at, &length));
    value("errors", recv(fd, bytes, 1, MSG_ERRQUEUE));
}

CASE(tcp_info_length, ACCELERATED)
{
    char info[600];
    socklen_t length = sizeof info;
    int local = listener(host4, 6301, 3);
    struct tcp_info told = {0};
    peer("dial %s 6301 s5 w", host4);
    peer("dial %s 6301 s5 w", host4);
    for (int i = 0; i < 2000 && told.tcpi_unacked != 2; i++) {
        pause_ms(10);
        length = sizeof told;
        getsockopt(local, IPPROTO_TCP, TCP_INFO, &told, &length);
    }
    line("state %u, %u wait of %u", told.tcpi_state, told.tcpi_unacked, told.tcpi_sacked);
    int fd = accept(local, NULL, NULL);
    length = sizeof told;
    getsockopt(local, IPPROTO_TCP, TCP_INFO, &told, &length);
    line("state %u, %u wait of %u", told.tcpi_state, told.tcpi_unacked, told.tcpi_sacked);
    length = sizeof info;
    value("TCP_INFO", getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &length));
    line("  %u bytes", length);
    int cpu = -7;
    length = sizeof cpu;
    value("SO_INCOMING_CPU", getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, &length));
    yes("  one", cpu >= 0);
}

/* Ends a connection with the echo server: what a program leaves open when it ends is the kernel's
 * then, and so are the segments of its end. */
static void end(int fd)
{
    char byte;
    shutdown(fd, SHUT_WR);
    while (read(fd, &byte, 1) < 0 && errno == EAGAIN)
        ;
    close(fd);
}

/* Options by their other names, and those whose answer is a connection's. */
CASE(tcp_other_names, ACCELERATED)
{
    enum { RCVTIMEO_NEW = 66, SNDTIMEO_NEW = 67 };
    int fd = dial(peer4, T_ECHO), number;
    socklen_t length = sizeof number;
    value("SO_RCVBUFFORCE", set(fd, SOL_SOCKET, SO_RCVBUFFORCE, 100000));
    getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &number, &length);
    line("  %d", number);
    value("SO_SNDBUFFORCE", set(fd, SOL_SOCKET, SO_SNDBUFFORCE, 200000));
    getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &number, &length);
    line("  %d", number);
    struct timeval limit = {0, 52000};
    value("SO_RCVTIMEO_NEW", setsockopt(fd, SOL_SOCKET, RCVTIMEO_NEW, &limit, sizeof limit));
    value("SO_SNDTIMEO_NEW", setsockopt(fd, SOL_SOCKET, SNDTIMEO_NEW, &limit, sizeof limit));
    receive(fd, 0);
    static const int names[] = {RCVTIMEO_NEW, SNDTIMEO_NEW, SO_RCVTIMEO, SO_SNDTIMEO};
    for (int i = 0; i < 4; i++) {
        limit.tv_sec = 9;
        length = sizeof limit;
        value("getsockopt", getsockopt(fd, SOL_SOCKET, names[i], &limit, &length));
        line("  %ld %ld", limit.tv_sec, limit.tv_usec);
    }
    struct sockaddr_in6 name = {0};
    for (length = 0; length < 40; length += 8) {
        socklen_t room = length;
        value("SO_PEERNAME", getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &name, &room));
        line("  %u", room);
    }
    yes("the peer's port", name.sin6_port == htons(T_ECHO));
    value("TCP_FASTOPEN", set(fd, IPPROTO_TCP, TCP_FASTOPEN, 1));
    end(fd);
    fd = dial(peer6, T_ECHO);
    static const int sixes[] = {IPV6_ADDRFORM, IPV6_MTU, IPV6_PATHMTU, IPV6_V6ONLY};
    for (int i = 0; i < 4; i++) {
        char told[40] = "";
        length = sizeof told;
        value("getsockopt", getsockopt(fd, IPPROTO_IPV6, sixes[i], told, &length));
        content("  told", told, length);
    }
    value("IPV6_V6ONLY", set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    end(fd);
}

/* Waiting for more than the buffer takes ends when that is full. */
CASE(tcp_lowat, ACCELERATED)
{
    static char bytes[400000];
    int fd = accepted(6302, "s1000000 w"), number;
    value("SO_RCVLOWAT", set(fd, SOL_SOCKET, SO_RCVLOWAT, 300000));
    wait_for(fd, POLLIN, 3000);
    int local = listener(host4, 6303, 5);
    value("SO_RCVBUF", set(local, SOL_SOCKET, SO_RCVBUF, 20000));
    peer("dial %s 6303 s1000000 w", host4);
    int small = accept(local, NULL, NULL);
    value("SO_RCVLOWAT", set(small, SOL_SOCKET, SO_RCVLOWAT, 300000));
    socklen_t length = sizeof number;
    getsockopt(small, SOL_SOCKET, SO_RCVLOWAT, &number, &length);
    line("  %d", number);
    wait_for(small, POLLIN, 3000);
    yes("most of it", recv(small, bytes, sizeof bytes, 0) >= 16000);
    value("WAITALL", recv(small, bytes, sizeof bytes, MSG_WAITALL));
    value("WAITALL", recv(fd, bytes, sizeof bytes, MSG_WAITALL));
}

static volatile sig_atomic_t urgent, asynchronous;

static void on_signal(int signal)
{
    if (signal == SIGURG)
        urgent++;
    else
        asynchronous++;
}

/* SIGURG and SIGIO come whatever the program does meanwhile. */
CASE(tcp_owner, MIXED)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGURG, &action, NULL);
    sigaction(SIGIO, &action, NULL);
    int fd = accepted(6304, "g1 s3 g1 u4 g1 s2 w");
    value("write", write(fd, "a", 1));
    wait_for(fd, POLLIN, 3000);
    value("F_SETOWN", fcntl(fd, F_SETOWN, getpid()));
    value("write", write(fd, "a", 1));
    for (int i = 0; i < 600 && !urgent; i++)
        pause_ms(5);
    line("SIGURG %d, SIGIO %d", urgent, asynchronous);
    receive(fd, MSG_OOB);
    value("O_ASYNC", fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK));
    value("write", write(fd, "b", 1));
    for (int i = 0; i < 600 && !asynchronous; i++)
        pause_ms(5);
    yes("SIGIO", asynchronous > 0);
    yes("F_GETOWN", fcntl(fd, F_GETOWN) == getpid());
    asynchronous = 0;
    int datagrams = udp(host4, 6305), on = 1, own = getpid();
    value("FIOSETOWN", ioctl(datagrams, FIOSETOWN, &own));
    value("FIOASYNC", ioctl(datagrams, FIOASYNC, &on));
    send_to(datagrams, "c", peer4, ECHO);
    for (int i = 0; i < 600 && !asynchronous; i++)
        pause_ms(5);
    yes("SIGIO", asynchronous > 0);
}

/* What only the kernel has: the connection becomes the kernel's when it is asked for. */
CASE(tcp_kernel_options, MIXED)
{
    int fd = accepted(6306, "s20 w");
    wait_for(fd, POLLIN, 3000);
    char text[16];
    socklen_t length = sizeof text;
    value("TCP_ULP none", setsockopt(fd, IPPROTO_TCP, TCP_ULP, "nonesuch", 8));
    value("TCP_CONGESTION none", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nonesuch", 8));
    value("SO_PEEK_OFF", set(fd, SOL_SOCKET, SO_PEEK_OFF, 0));
    message(fd, 5, MSG_PEEK);
    message(fd, 5, MSG_PEEK);
    message(fd, 4, 0);
    message(fd, 64, MSG_PEEK);
    message(fd, 64, MSG_PEEK | MSG_DONTWAIT);
    fd = dial(peer4, T_ECHO);
    int what = SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_OPT_TSONLY;
    value("write", write(fd, "abc", 3));
    receive(fd, 0);
    value("SO_TIMESTAMPING", set(fd, SOL_SOCKET, SO_TIMESTAMPING, what));
    value("write", write(fd, "abc", 3));
    wait_for(fd, 0, 3000);
    message(fd, 10, MSG_ERRQUEUE);
    fd = dial(peer4, T_ECHO);
    value("write", write(fd, "abc", 3));
    wait_for(fd, POLLIN, 3000);
    struct {
        uint64_t address;
        uint32_t size, hint, waiting;
        int32_t error;
        uint64_t more[5];
    } mapped = {0};
    length = sizeof mapped;
    value("ZEROCOPY_RECEIVE", getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &mapped, &length));
    line("  %u: size %u hint %u", length, mapped.size, mapped.hint);
    int local = listener(host4, 6307, 5);
    value("SO_TIMESTAMP", set(local, SOL_SOCKET, SO_TIMESTAMP, 1));
    value("TCP_SAVE_SYN", set(local, IPPROTO_TCP, TCP_SAVE_SYN, 1));
    peer("dial %s 6307 s5 w", host4);
    fd = accept(local, NULL, NULL);
    /* The kernel's first packets may have no timestamp yet. */
    receive(fd, 0);
    char syn[100];
    length = sizeof syn;
    value("TCP_SAVED_SYN", getsockopt(fd, IPPROTO_TCP, TCP_SAVED_SYN, syn, &length));
    line("  %u bytes", length);
}

/* Each makes a connection the kernel's, and is what it would be there. */
CASE(tcp_kernel_values, MIXED)
{
    static const unsigned char byte[] = {5}, nothing[] = {1, 1, 1, 0};
    static const int one = 1, seven = 7, thousand = 1000;
    static const struct {
        int level, name;
        const void *value;
        socklen_t length;
    } rows[] = {
        {SOL_SOCKET, SO_TIMESTAMPNS_NEW, &one, 4}, {SOL_SOCKET, SO_MARK, &seven, 4},
        {IPPROTO_IP, IP_MINTTL, &seven, 4},       {IPPROTO_IP, IP_MINTTL, byte, 1},
        {IPPROTO_TCP, TCP_TX_DELAY, &thousand, 4}, {IPPROTO_IP, IP_OPTIONS, nothing, 4},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        int fd = dial(peer4, T_ECHO);
        value("set", setsockopt(fd, rows[i].level, rows[i].name, rows[i].value, rows[i].length));
        char told[8] = "";
        socklen_t length = sizeof told;
        value("get", getsockopt(fd, rows[i].level, rows[i].name, told, &length));
        content("  told", told, length);
        value("write", write(fd, "abc", 3));
        receive(fd, 0);
        close(fd);
    }
    int fd = dial(peer4, T_RESET);
    value("write", write(fd, "abc", 3));
    wait_for(fd, POLLHUP, 3000);
    value("on an ended one", set(fd, SOL_SOCKET, SO_MARK, 7));
    fd = dial(peer4, T_ECHO);
    value("nobody's signals", fcntl(fd, F_SETOWN, 0));
    value("V6ONLY of IPv4", set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    socklen_t length = sizeof one;
    int number;
    value("no such answer", getsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &number, &length));
    value("write", write(fd, "abc", 3));
    receive(fd, 0);
}

/* A client's fast open asks for a cookie first, and then has it. */
CASE(tcp_fastopen, ACCELERATED)
{
    struct to to = at(peer4, T_ECHO);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    value("TCP_FASTOPEN_CONNECT", set(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1));
    connect_to(fd, peer4, T_ECHO);
    wait_for(fd, POLLOUT, 1000);
    value("write", write(fd, "hello", 5));
    receive(fd, 0);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    value("MSG_FASTOPEN", sendto(fd, "hello", 5, MSG_FASTOPEN, (void *)&to.at, to.length));
    receive(fd, 0);
    value("write", write(fd, "again", 5));
    receive(fd, 0);
}

/* connect() with AF_UNSPEC ends a listener; it may listen again. */
CASE(tcp_listener_dissolved, MIXED)
{
    int local = listener(host4, 6308, 3);
    struct sockaddr to = {.sa_family = AF_UNSPEC};
    connect_to(local, peer4, T_ECHO);
    value("AF_UNSPEC", connect(local, &to, sizeof to));
    value("accept", accept(local, NULL, NULL));
    line("%s", peer("dial %s 6308 s5 w", host4));
    line("%s", peer("dialled"));
    value("listen", listen(local, 5));
    line("%s", peer("dial %s 6308 s5 w", host4));
    int fd = accept(local, NULL, NULL);
    done("accept", fd);
    receive(fd, 0);
    close(fd);
    fd = dial(peer4, T_ECHO);
    value("write", write(fd, "still", 5));
    receive(fd, 0);
}
