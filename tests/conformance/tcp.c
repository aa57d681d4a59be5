/* TCP: connections, data, ends, options. */
#include "case.h"

#include <netinet/tcp.h>
#include <sys/sendfile.h>

static void names(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    value("getsockname", getsockname(fd, (struct sockaddr *)&address, &length));
    print_address("  local", &address);
    length = sizeof address;
    if (value("getpeername", getpeername(fd, (struct sockaddr *)&address, &length)) == 0)
        print_address("  remote", &address);
    line("  address length %u", length);
}

static int take_one(int fd)
{
    struct sockaddr_storage from = {0};
    socklen_t length = sizeof from;
    int one = accept(fd, (struct sockaddr *)&from, &length);
    done("accept", one);
    if (one >= 0)
        print_address("  from", &from);
    return one;
}

/* Reads until the end; prints how much it was and how it ended. */
static void drain(int fd)
{
    static char bytes[65536];
    long total = 0, got, bad = 0;
    while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0) {
        for (long i = 0; i < got; i++)
            bad += bytes[i] != (char)('a' + (total + i) % 26);
        total += got;
    }
    value("the end", got);
    line("  %ld bytes, %ld wrong", total, bad);
}

CASE(tcp_echo_server, ACCELERATED)
{
    int fd = listener(host4, 6200, 5);
    line("%s", peer("dial %s 6200 s10 g10 f w", host4));
    int one = take_one(fd);
    names(one);
    receive(one, 0);
    value("send", send(one, "0123456789", 10, 0));
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
}

CASE(tcp_echo_client, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    names(fd);
    value("write", write(fd, "hello", 5));
    receive(fd, 0);
    value("shutdown", shutdown(fd, SHUT_WR));
    receive(fd, 0);
    value("send after shutdown", send(fd, "x", 1, MSG_NOSIGNAL));
    value("close", close(fd));
}

CASE(tcp_ipv6, ACCELERATED)
{
    int fd = dial(peer6, T_ECHO);
    names(fd);
    value("write", write(fd, "hello", 5));
    receive(fd, 0);
    close(fd);
    fd = listener(host6, 6201, 5);
    line("%s", peer("dial %s 6201 s3 w", host6));
    int one = take_one(fd);
    names(one);
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
}

CASE(tcp_v4mapped, ACCELERATED)
{
    int fd = listener("::", 6202, 5);
    line("%s", peer("dial %s 6202 s3 w", host4));
    int one = take_one(fd);
    names(one);
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    char mapped[80];
    snprintf(mapped, sizeof mapped, "::ffff:%s", peer4);
    connect_to(fd, mapped, T_ECHO);
    names(fd);
    value("write", write(fd, "hello", 5));
    receive(fd, 0);
}

CASE(tcp_bound_client, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct to local = at(host4, 6203);
    value("bind", bind(fd, (struct sockaddr *)&local.at, local.length));
    connect_to(fd, peer4, T_ECHO);
    names(fd);
    value("write", write(fd, "hello", 5));
    receive(fd, 0);
    connect_to(fd, peer4, T_ECHO);
}

/* Nobody gets the port of a connection that was closed a moment ago to the same peer. */
CASE(tcp_ports_in_time_wait, ACCELERATED)
{
    FILE *range = fopen("/proc/sys/net/ipv4/ip_local_port_range", "r+");
    int low = 0, high = 0;
    if (!range || fscanf(range, "%d %d", &low, &high) != 2)
        line("no range");
    rewind(range);
    fprintf(range, "42000 42007\n");
    fflush(range);
    for (int i = 0; i < 10; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        connect_to(fd, peer4, T_ECHO);
        close(fd);
    }
    rewind(range);
    fprintf(range, "%d %d\n", low, high);
    fclose(range);
    for (int i = 0; i < 2; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        struct to local = at(host4, 6218);
        value("bind", bind(fd, (struct sockaddr *)&local.at, local.length));
        connect_to(fd, peer4, T_ECHO);
        /* When the peer's end is here too, what stays is a time wait. */
        value("shutdown", shutdown(fd, SHUT_WR));
        receive(fd, 0);
        close(fd);
    }
}

CASE(tcp_bulk_in, ACCELERATED)
{
    int fd = listener(host4, 6204, 5);
    line("%s", peer("dial %s 6204 s8000000", host4));
    drain(take_one(fd));
    line("%s", peer("dialled"));
}

CASE(tcp_bulk_out, ACCELERATED)
{
    static char bytes[1 << 20];
    int fd = dial(peer4, T_SINK);
    for (int i = 0; i < 8; i++)
        value("send", send(fd, bytes, sizeof bytes, 0));
    close(fd);
    line("%s", peer("dialled"));
}

CASE(tcp_refused, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    connect_to(fd, peer4, T_REFUSED);
    int error = -1;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    line("SO_ERROR %d", error);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect_to(fd, peer4, T_REFUSED);
    wait_for(fd, POLLIN | POLLOUT, 3000);
    for (int i = 0; i < 2; i++) {
        length = sizeof error;
        value("getsockopt", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
        line("SO_ERROR %s", error ? strerrorname_np(error) : "none");
    }
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    connect_to(fd, peer4, T_REFUSED);
    connect_to(fd, peer4, T_ECHO);
    value("write", write(fd, "again", 5));
    receive(fd, 0);
}

CASE(tcp_nb_connect, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect_to(fd, peer4, T_ECHO);
    wait_for(fd, POLLOUT, 3000);
    wait_for(fd, POLLIN, 0);
    int error = -1;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    line("SO_ERROR %d", error);
    connect_to(fd, peer4, T_ECHO);
    connect_to(fd, peer4, T_ECHO);
    receive(fd, 0);
    value("write", write(fd, "hello", 5));
    wait_for(fd, POLLIN, 3000);
    receive(fd, 0);
    receive(fd, 0);
}

CASE(tcp_vectors, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), waiting = -1;
    struct iovec parts[] = {{"ab", 2}, {"", 0}, {"cdef", 4}};
    value("writev", writev(fd, parts, 3));
    value("MSG_MORE", send(fd, "gh", 2, MSG_MORE));
    value("send", send(fd, "ij", 2, 0));
    char bytes[64] = "";
    content("WAITALL", bytes, recv(fd, bytes, 10, MSG_WAITALL | MSG_PEEK));
    value("FIONREAD", ioctl(fd, FIONREAD, &waiting));
    line("  waiting %d", waiting);
    content("PEEK", bytes, recv(fd, bytes, 3, MSG_PEEK));
    char one[3] = "", two[5] = "";
    struct iovec into[] = {{one, 2}, {NULL, 0}, {two, 4}};
    value("readv", readv(fd, into, 3));
    line("  %s %s", one, two);
    value("TRUNC", recv(fd, NULL, 2, MSG_TRUNC));
    content("recv", bytes, recv(fd, bytes, sizeof bytes, 0));
    content("DONTWAIT", bytes, recv(fd, bytes, sizeof bytes, MSG_DONTWAIT));
    value("read nothing", read(fd, bytes, 0));
    value("write nothing", write(fd, bytes, 0));
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3, .msg_flags = 77};
    value("sendmsg", sendmsg(fd, &message, 0));
    struct sockaddr_storage from;
    message = (struct msghdr){.msg_name = &from,
                              .msg_namelen = sizeof from,
                              .msg_iov = &(struct iovec){bytes, sizeof bytes},
                              .msg_iovlen = 1};
    value("recvmsg", recvmsg(fd, &message, 0));
    line("  name %u control %zu flags %d", message.msg_namelen, message.msg_controllen,
         message.msg_flags);
}

CASE(tcp_bad_arguments, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    value("send", send(fd, NULL, 5, 0));
    value("write", write(fd, (void *)8, 5));
    value("recvmsg", recvmsg(fd, NULL, MSG_DONTWAIT));
    value("sendmsg", sendmsg(fd, NULL, 0));
    value("getsockname", getsockname(fd, NULL, NULL));
    int on = 1;
    socklen_t length = sizeof on;
    value("setsockopt short", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, 1));
    value("setsockopt nowhere", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, NULL, 4));
    value("getsockopt unknown", getsockopt(fd, IPPROTO_TCP, 9999, &on, &length));
    value("shutdown", shutdown(fd, 7));
    value("listen", listen(fd, 5));
    value("lseek", lseek(fd, 0, SEEK_SET));
    value("accept", accept(fd, NULL, NULL));
}

/* Pointers that no program can have lose nothing of a stream. */
CASE(tcp_wild_pointers, ACCELERATED)
{
    static void *const wild[] = {(void *)8, (void *)-1, (void *)(1UL << 63)};
    int fd = dial(peer4, T_ECHO), server = listener(host4, 6213, 5);
    for (int i = 0; i < 3; i++) {
        void *where = wild[i];
        char byte;
        struct iovec part = {where, 5}, parts[2] = {{"x", 0}, part};
        struct msghdr message = {.msg_iov = where, .msg_iovlen = 1};
        struct sockaddr_storage from;
        socklen_t length = sizeof from;
        line("%p", where);
        value("send", send(fd, where, 5, 0));
        value("send nothing", send(fd, where, 0, 0));
        value("sendmsg", sendmsg(fd, where, 0));
        value("sendmsg, parts", sendmsg(fd, &message, 0));
        message.msg_iov = &part;
        value("sendmsg, bytes", sendmsg(fd, &message, 0));
        message.msg_iov = parts;
        message.msg_iovlen = 2;
        value("sendmsg, second part", sendmsg(fd, &message, 0));
        value("writev", writev(fd, where, 1));
        value("sendfile, offset", sendfile(fd, 0, where, 5));
        value("send", send(fd, "abcde", 5, 0));
        wait_for(fd, POLLIN, 2000);
        value("recv", recv(fd, where, 5, MSG_DONTWAIT));
        value("recvmsg", recvmsg(fd, where, MSG_DONTWAIT));
        value("recvmsg, second part", recvmsg(fd, &message, MSG_DONTWAIT));
        value("readv", readv(fd, where, 1));
        value("recvfrom, address", recvfrom(fd, &byte, 1, MSG_DONTWAIT, where, &length));
        value("recvfrom, length", recvfrom(fd, &byte, 1, MSG_DONTWAIT,
                                           (struct sockaddr *)&from, where));
        value("recvfrom, no length", recvfrom(fd, &byte, 1, MSG_DONTWAIT,
                                              (struct sockaddr *)&from, NULL));
        receive(fd, MSG_DONTWAIT);
        value("getsockname", getsockname(fd, where, &length));
        value("getpeername, length", getpeername(fd, (struct sockaddr *)&from, where));
        value("getsockopt", getsockopt(fd, SOL_SOCKET, SO_TYPE, where, &length));
        value("setsockopt", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, where, 4));
        value("FIONREAD", ioctl(fd, FIONREAD, where));
        value("FIONBIO", ioctl(fd, FIONBIO, where));
        value("connect", connect(fd, where, sizeof from));
        value("getpeername, listener", getpeername(server, where, &length));
    }
    line("%s", peer("dial %s 6213 s3 w", host4));
    wait_for(server, POLLIN, 2000);
    socklen_t length = sizeof(struct sockaddr_storage);
    done("accept, length only", accept(server, NULL, &length));
    line("length %u", length);
}

CASE(tcp_halfclose, ACCELERATED)
{
    int fd = dial(peer4, T_LATE);
    value("write", write(fd, "question", 8));
    value("shutdown", shutdown(fd, SHUT_WR));
    value("send", send(fd, "x", 1, MSG_NOSIGNAL));
    drain(fd);
    wait_for(fd, POLLIN | POLLOUT | POLLRDHUP, 1000);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    value("shutdown unconnected", shutdown(fd, SHUT_WR));
}

CASE(tcp_linger_reset, ACCELERATED)
{
    struct linger reset = {1, 0}, told = {0, 0};
    int fd = dial(peer4, T_SINK);
    value("write", write(fd, "abc", 3));
    pause_ms(50);
    value("SO_LINGER", setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset));
    socklen_t length = sizeof told;
    getsockopt(fd, SOL_SOCKET, SO_LINGER, &told, &length);
    line("  %d %d", told.l_onoff, told.l_linger);
    close(fd);
    line("%s", peer("dialled"));
    fd = dial(peer4, T_SINK);
    reset.l_linger = 5;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    value("write", write(fd, "abc", 3));
    uint64_t start = now_ms();
    value("close", close(fd));
    yes("it took long", now_ms() - start > 2000);
    line("%s", peer("dialled"));
}

CASE(tcp_unread_reset, ACCELERATED)
{
    int fd = listener(host4, 6205, 5);
    line("%s", peer("dial %s 6205 s100 w", host4));
    int one = take_one(fd);
    wait_for(one, POLLIN, 5000);
    close(one);
    line("%s", peer("dialled"));
}

static volatile sig_atomic_t pipes;

static void number(int fd, const char *what, int level, int name)
{
    int told = -1;
    socklen_t length = sizeof told;
    value(what, getsockopt(fd, level, name, &told, &length));
    line("  %d, %u bytes", told, length);
}

static void count_pipe(int signal)
{
    pipes += signal == SIGPIPE;
}

CASE(tcp_reset_by_peer, ACCELERATED)
{
    signal(SIGPIPE, count_pipe);
    int fd = dial(peer4, T_RESET);
    value("write", write(fd, "x", 1));
    wait_for(fd, POLLIN, 3000);
    receive(fd, 0);
    receive(fd, 0);
    value("NOSIGNAL", send(fd, "y", 1, MSG_NOSIGNAL));
    line("  SIGPIPE %d", pipes);
    value("send", send(fd, "y", 1, 0));
    line("  SIGPIPE %d", pipes);
    value("write", write(fd, "y", 1));
    line("  SIGPIPE %d", pipes);
}

/* A read sees the end that the peer has sent, not the reset that came later. */
CASE(tcp_reset_after_fin, ACCELERATED)
{
    for (int writes = 0; writes < 2; writes++) {
        int local = listener(host4, 6267 + writes, 5);
        line("%s", peer("dial %s %d s3 f p300 x", host4, 6267 + writes));
        int fd = take_one(local);
        receive(fd, 0);
        receive(fd, 0);
        wait_for(fd, 0, 3000);
        receive(fd, 0);
        if (writes)
            value("NOSIGNAL", send(fd, "y", 1, MSG_NOSIGNAL));
        number(fd, "SO_ERROR", SOL_SOCKET, SO_ERROR);
        receive(fd, 0);
        value("NOSIGNAL", send(fd, "y", 1, MSG_NOSIGNAL));
        close(fd);
        close(local);
    }
}

CASE(tcp_timeouts, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    struct timeval time = {0, 250000}, told = {0, 0};
    value("SO_RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    socklen_t length = sizeof told;
    getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &told, &length);
    yes("told as set", labs(told.tv_usec - time.tv_usec) <= 10000 && told.tv_sec == 0);
    uint64_t start = now_ms();
    receive(fd, 0);
    uint64_t took = now_ms() - start;
    yes("after 250 ms", took >= 245 && took < 2000);
    value("write", write(fd, "abc", 3));
    wait_for(fd, POLLIN, 5000);
    receive(fd, 0);
    char bytes[8];
    value("write", write(fd, "abc", 3));
    wait_for(fd, POLLIN, 5000);
    content("WAITALL", bytes, recv(fd, bytes, 5, MSG_WAITALL));
}

/* Bytes that a socket takes until it has no room; the peer reads none of them. */
static long fill(int fd, int flags)
{
    static char bytes[16384];
    long all = 0, sent;
    while ((sent = send(fd, bytes, sizeof bytes, flags)) > 0)
        all += sent;
    line("the last = %ld %s", sent, strerrorname_np(errno));
    return all;
}

/* A send that waits for room, for SO_SNDTIMEO and no longer. */
CASE(tcp_send_timeout, ACCELERATED)
{
    int fd = listener(host4, 6241, 5);
    peer("dial %s 6241 p20000 w", host4);
    int one = accept(fd, NULL, NULL);
    struct timeval time = {0, 250000}, told = {9, 9};
    socklen_t length = sizeof told;
    value("SO_SNDTIMEO", setsockopt(one, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time));
    getsockopt(one, SOL_SOCKET, SO_SNDTIMEO, &told, &length);
    yes("told as set", labs(told.tv_usec - time.tv_usec) <= 10000 && told.tv_sec == 0);
    yes("some", fill(one, 0) > 16384);
    uint64_t start = now_ms();
    value("send", send(one, "x", 1, 0));
    uint64_t took = now_ms() - start;
    yes("after 250 ms", took >= 245 && took < 2000);
    time.tv_sec = 5;
    setsockopt(one, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    start = now_ms();
    value("send, not waiting", send(one, "x", 1, MSG_DONTWAIT));
    yes("at once", now_ms() - start < 2000);
    value("recv", recv(one, &told, 1, MSG_DONTWAIT));
}

/* SO_SNDBUF is what waits here for a peer that does not read: a larger one takes more. */
CASE(tcp_send_buffer, ACCELERATED)
{
    static const int sizes[] = {1, 100000, 400000};
    long taken[3];
    int fd = listener(host4, 6242, 5);
    for (int i = 0; i < 3; i++) {
        peer("dial %s 6242 p20000 w", host4);
        int one = accept(fd, NULL, NULL);
        value("SO_SNDBUF", setsockopt(one, SOL_SOCKET, SO_SNDBUF, &sizes[i], sizeof sizes[i]));
        /* Until the peer's window is full too. */
        taken[i] = 0;
        for (int full = 0; full < 10; full++, pause_ms(20)) {
            char bytes[4096] = "";
            long sent;
            while ((sent = send(one, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
                taken[i] += sent;
                full = 0;
            }
        }
        yes("some", taken[i] > 0);
    }
    yes("50000 more with 100000 than with 1", taken[1] > taken[0] + 50000);
    yes("300000 more with 400000", taken[2] > taken[1] + 300000);
}

/* What one write takes, to the byte: bursts are begun while the buffer is not full, and filled. */
CASE(tcp_send_burst, ACCELERATED)
{
    static const int sizes[] = {1, 10000, 40000, 60000};
    static char bytes[1 << 20];
    int fd = listener(host4, 6246, 5);
    for (int i = 0; i < 4; i++) {
        peer("dial %s 6246 w", host4);
        int one = accept(fd, NULL, NULL);
        value("SO_SNDBUF", setsockopt(one, SOL_SOCKET, SO_SNDBUF, &sizes[i], sizeof sizes[i]));
        number(one, "SO_SNDBUF", SOL_SOCKET, SO_SNDBUF);
        value("one byte", send(one, bytes, 1, MSG_DONTWAIT | MSG_MORE));
        value("send", send(one, bytes, sizeof bytes, MSG_DONTWAIT));
        wait_for(one, POLLOUT, 5000);
        done("close", close(one));
    }
}

CASE(tcp_interrupted, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), local = listener(host4, 6206, 5);
    alarm_every(100, 0);
    receive(fd, 0);
    value("accept", accept(local, NULL, NULL));
    wait_for(fd, POLLIN, 30000);
    alarm_off();
}

CASE(tcp_options, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), on = 1, seconds = 77;
    number(fd, "SO_TYPE", SOL_SOCKET, SO_TYPE);
    number(fd, "SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE);
    value("SO_KEEPALIVE", setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    number(fd, "SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE);
    number(fd, "TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY);
    value("TCP_NODELAY", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    number(fd, "TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY);
    value("TCP_CORK", setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on));
    number(fd, "TCP_CORK", IPPROTO_TCP, TCP_CORK);
    number(fd, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE);
    value("TCP_KEEPIDLE", setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds));
    number(fd, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE);
    number(fd, "TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL);
    number(fd, "TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT);
    value("TCP_USER_TIMEOUT", setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &seconds, sizeof on));
    number(fd, "TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT);
    number(fd, "TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT);
    number(fd, "TCP_MAXSEG", IPPROTO_TCP, TCP_MAXSEG);
    value("SO_RCVBUF", setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){30000}, sizeof on));
    number(fd, "SO_RCVBUF", SOL_SOCKET, SO_RCVBUF);
    value("SO_SNDBUF", setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){30000}, sizeof on));
    number(fd, "SO_SNDBUF", SOL_SOCKET, SO_SNDBUF);
    value("SO_RCVLOWAT", setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &(int){5}, sizeof on));
    number(fd, "SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT);
    value("IP_TOS", setsockopt(fd, IPPROTO_IP, IP_TOS, &(int){16}, sizeof on));
    number(fd, "IP_TOS", IPPROTO_IP, IP_TOS);
    number(fd, "SO_ACCEPTCONN", SOL_SOCKET, SO_ACCEPTCONN);
    struct tcp_info info = {0};
    socklen_t length = 104;
    value("TCP_INFO", getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
    line("  %u bytes, state %d", length, info.tcpi_state);
    char name[16] = "";
    length = sizeof name;
    value("TCP_CONGESTION", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    value("TCP_CONGESTION", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length));
    line("  %s %u", name, length);
}

CASE(tcp_inherited_options, ACCELERATED)
{
    int fd = listener(host4, 6207, 5), on = 1, idle = 55;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    number(fd, "SO_ACCEPTCONN", SOL_SOCKET, SO_ACCEPTCONN);
    value("O_NONBLOCK", fcntl(fd, F_SETFL, O_NONBLOCK));
    yes("listener O_NONBLOCK", fcntl(fd, F_GETFL) & O_NONBLOCK);
    value("accept", accept(fd, NULL, NULL));
    line("%s", peer("dial %s 6207 w", host4));
    wait_for(fd, POLLIN, 3000);
    int one = accept(fd, NULL, NULL);
    done("accept", one);
    yes("O_NONBLOCK", fcntl(one, F_GETFL) & O_NONBLOCK);
    number(one, "TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY);
    number(one, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE);
    number(one, "SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE);
    close(one);
    line("%s", peer("dialled"));
    line("%s", peer("dial %s 6207 w", host4));
    wait_for(fd, POLLIN, 3000);
    one = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    yes("O_NONBLOCK", fcntl(one, F_GETFL) & O_NONBLOCK);
    yes("CLOEXEC", fcntl(one, F_GETFD) & FD_CLOEXEC);
    receive(one, 0);
    value("accept4 bad flags", accept4(fd, NULL, NULL, 1));
}

CASE(tcp_listener_ends, ACCELERATED)
{
    int fd = listener(host4, 6208, 5);
    value("listen again", listen(fd, 10));
    connect_to(fd, peer4, T_ECHO);
    line("%s", peer("dial %s 6208 s1 w", host4));
    wait_for(fd, POLLIN, 3000);
    pause_ms(100);
    value("close", close(fd));
    line("%s", peer("dialled"));
    line("%s", peer("dial %s 6208 s1 w", host4));
    line("%s", peer("dialled"));
    fd = listener(host4, 6208, 5);
    line("%s", peer("dial %s 6208 w", host4));
    close(take_one(fd));
    line("%s", peer("dialled"));
    value("shutdown", shutdown(fd, SHUT_RD));
    value("accept", accept(fd, NULL, NULL));
}

CASE(tcp_wildcard_both, MIXED)
{
    int fd = listener("", 6209, 5);
    line("%s", peer("dial %s 6209 s3 w", host4));
    int one = take_one(fd);
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
    int local = dial("127.0.0.1", 6209);
    value("write", write(local, "lo", 2));
    one = take_one(fd);
    receive(one, 0);
    close(one);
    receive(local, 0);
    wait_for(fd, POLLIN, 0);
}

CASE(tcp_sendfile, ACCELERATED)
{
    char path[] = "/tmp/bypass-sendfile-XXXXXX", bytes[200000];
    int file = mkstemp(path), fd = dial(peer4, T_SINK);
    unlink(path);
    memset(bytes, 'q', sizeof bytes);
    value("file", write(file, bytes, sizeof bytes));
    off_t from = 50000;
    value("sendfile", sendfile(fd, file, &from, 100000));
    line("  offset %ld", (long)from);
    lseek(file, 190000, SEEK_SET);
    value("sendfile", sendfile(fd, file, NULL, 100000));
    line("  offset %ld", (long)lseek(file, 0, SEEK_CUR));
    value("at the end", sendfile(fd, file, NULL, 100));
    close(fd);
    line("%s", peer("dialled"));
}

CASE(tcp_splice, ACCELERATED)
{
    int pipes[2], fd = dial(peer4, T_ECHO);
    value("pipe", pipe(pipes));
    value("pipe", write(pipes[1], "abcdefgh", 8));
    value("splice", splice(pipes[0], NULL, fd, NULL, 8, 0));
    wait_for(fd, POLLIN, 3000);
    value("splice", splice(fd, NULL, pipes[1], NULL, 100, 0));
    char bytes[16] = "";
    content("pipe", bytes, read(pipes[0], bytes, sizeof bytes));
    value("O_NONBLOCK", fcntl(fd, F_SETFL, O_NONBLOCK));
    value("nothing", splice(fd, NULL, pipes[1], NULL, 100, 0));
    value("empty pipe", splice(pipes[0], NULL, fd, NULL, 100, SPLICE_F_NONBLOCK));
    value("offset", splice(fd, &(loff_t){0}, pipes[1], NULL, 100, 0));
}

CASE(tcp_dup, ACCELERATED)
{
    int fd = dial(peer4, T_SINK), other = dup(fd);
    done("dup", other);
    close(fd);
    value("write", write(other, "abc", 3));
    int high = fcntl(other, F_DUPFD_CLOEXEC, 150);
    yes("high", high >= 150);
    value("O_NONBLOCK", fcntl(high, F_SETFL, O_NONBLOCK));
    receive(other, 0);
    close(other);
    value("write", write(high, "def", 3));
    close(high);
    line("%s", peer("dialled"));
}

CASE(tcp_by_syscall, ACCELERATED)
{
    int fd = (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    struct to to = at(peer4, T_ECHO);
    value("connect", syscall(SYS_connect, fd, &to.at, to.length));
    value("write", syscall(SYS_write, fd, "abc", 3));
    char bytes[16] = "";
    content("recvfrom", bytes, syscall(SYS_recvfrom, fd, bytes, 16, 0, NULL, NULL));
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    value("getpeername", syscall(SYS_getpeername, fd, &address, &length));
    print_address("  remote", &address);
    value("shutdown", syscall(SYS_shutdown, fd, SHUT_WR));
    receive(fd, 0);
    value("close", syscall(SYS_close, fd));
    value("write", write(fd, "x", 1));
}

CASE(tcp_fork, ACCELERATED)
{
    int fd = listener(host4, 6210, 5);
    line("%s", peer("dial %s 6210 s5 w", host4));
    int one = take_one(fd);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        receive(one, 0);
        value("child writes", write(one, "child", 5));
        fflush(stdout);
        _exit(0);
    }
    reap(child);
    value("parent writes", write(one, "parent", 6));
    close(one);
    line("%s", peer("dialled"));
    line("%s", peer("dial %s 6210 s5 w", host4));
    fflush(stdout);
    child = fork();
    if (child == 0) {
        one = take_one(fd);
        receive(one, 0);
        value("child writes", write(one, "child", 5));
        fflush(stdout);
        _exit(0);
    }
    close(fd);
    reap(child);
    line("%s", peer("dialled"));
}

/* A child that is forked as soon as another has ended keeps what it alone holds. */
CASE(tcp_fork_again, ACCELERATED)
{
    int served = 0;
    for (int round = 0; round < 20; round++) {
        int fd = listener(host4, 6211, 5);
        peer("dial %s 6211 s5 w", host4);
        fflush(stdout);
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
        child = fork();
        if (child == 0) {
            int one = accept(fd, NULL, NULL);
            char bytes[5];
            _exit(recv(one, bytes, sizeof bytes, MSG_WAITALL) == 5 && write(one, "x", 1) == 1);
        }
        close(fd);
        int status = 0;
        waitpid(child, &status, 0);
        served += WIFEXITED(status) && WEXITSTATUS(status) == 1;
        peer("dialled");
    }
    value("served", served);
}

/* Writes a setting of this network namespace. */
static void setting(const char *name, const char *text)
{
    char path[80];
    snprintf(path, sizeof path, "/proc/sys/net/ipv4/%s", name);
    int fd = open(path, O_WRONLY);
    line("%s %s", name, fd >= 0 && write(fd, text, strlen(text)) > 0 ? text : strerror(errno));
    close(fd);
}

/* What was agreed with the peer. */
static void agreed(int fd)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    line("  timestamps %d sack %d scaling %d ecn %d", info.tcpi_options & TCPI_OPT_TIMESTAMPS,
         info.tcpi_options & TCPI_OPT_SACK, info.tcpi_options & TCPI_OPT_WSCALE,
         info.tcpi_options & TCPI_OPT_ECN);
    char name[16] = "";
    length = sizeof name;
    value("TCP_CONGESTION", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length));
    line("  %s", name);
}

CASE(tcp_host_settings, ACCELERATED)
{
    setting("tcp_rmem", "4096 54321 400000");
    setting("tcp_syn_retries", "3");
    setting("tcp_timestamps", "0");
    setting("tcp_sack", "0");
    setting("tcp_window_scaling", "0");
    setting("tcp_congestion_control", "reno");
    setting("tcp_fin_timeout", "17");
    setting("tcp_keepalive_time", "1234");
    setting("tcp_keepalive_intvl", "23");
    setting("tcp_keepalive_probes", "4");
    int fd = dial(peer4, T_ECHO);
    agreed(fd);
    number(fd, "SO_RCVBUF", SOL_SOCKET, SO_RCVBUF);
    number(fd, "TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT);
    number(fd, "TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2);
    number(fd, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE);
    number(fd, "TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL);
    number(fd, "TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT);
    value("write", write(fd, "abc", 3));
    receive(fd, 0);
    close(fd);
    setting("tcp_timestamps", "1");
    setting("tcp_ecn", "1");
    setting("tcp_congestion_control", "cubic");
    /* The shim may believe what it has read for a second. */
    pause_ms(1100);
    fd = dial(peer4, T_ECHO);
    agreed(fd);
    close(fd);
    fd = listener(host4, 6211, 5);
    line("%s", peer("dial %s 6211 w", host4));
    int one = take_one(fd);
    agreed(one);
    number(one, "TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2);
    close(one);
    line("%s", peer("dialled"));
}
