/* Many parts in one datagram, many datagrams in one call. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>

CASE(vectors_parts, ACCELERATED)
{
    int fd = udp(host4, 5601);
    connect_to(fd, peer4, ECHO);
    struct iovec parts[5] = {{"one ", 4}, {NULL, 0}, {"two ", 4}, {"", 0}, {"three", 5}};
    char a[3], b[6], c[20];
    struct iovec rooms[4] = {{a, sizeof a}, {NULL, 0}, {b, sizeof b}, {c, sizeof c}};
    value("writev", writev(fd, parts, 5));
    wait_for(fd, POLLIN, 2000);
    value("readv", readv(fd, rooms, 4));
    line("%.3s|%.6s|%.4s", a, b, c);
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 5};
    value("sendmsg", sendmsg(fd, &message, MSG_DONTWAIT));
    wait_for(fd, POLLIN, 2000);
    struct msghdr into = {.msg_iov = rooms, .msg_iovlen = 3};
    value("recvmsg", recvmsg(fd, &into, MSG_DONTWAIT));
    yes("MSG_TRUNC", into.msg_flags & MSG_TRUNC);
    line("%.3s|%.6s", a, b);
    value("writev of nothing sends nothing", writev(fd, parts, 0));
    wait_for(fd, POLLIN, 50);
    value("writev, negative", writev(fd, parts, -1));
    value("readv, too many", readv(fd, rooms, 2000));
    value("MSG_MORE", send(fd, "first, ", 7, MSG_MORE));
    value("send", send(fd, "second", 6, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
    value("MSG_WAITALL", send(fd, "short", 5, 0));
    char big[100];
    content("recv MSG_WAITALL", big, recv(fd, big, sizeof big, MSG_WAITALL));
}

/* Without an offset preadv2 and pwritev2 are readv and writev with flags. */
CASE(vectors_without_offset, ACCELERATED)
{
    int fd = udp(host4, 5609);
    connect_to(fd, peer4, ECHO);
    struct iovec parts[2] = {{"one ", 4}, {"two", 3}};
    char a[4], b[20];
    struct iovec rooms[2] = {{a, sizeof a}, {b, sizeof b}};
    value("preadv2, RWF_NOWAIT, nothing there", preadv2(fd, rooms, 2, -1, RWF_NOWAIT));
    value("pwritev2", pwritev2(fd, parts, 2, -1, 0));
    wait_for(fd, POLLIN, 2000);
    value("preadv2", preadv2(fd, rooms, 2, -1, RWF_NOWAIT | RWF_HIPRI));
    line("%.4s|%.3s", a, b);
    value("pwritev64v2", pwritev64v2(fd, parts, 1, -1, RWF_NOWAIT | RWF_SYNC | RWF_DSYNC));
    wait_for(fd, POLLIN, 2000);
    value("preadv64v2", preadv64v2(fd, rooms, 1, -1, 0));
    value("SYS_pwritev2", syscall(SYS_pwritev2, fd, parts, 2, -1L, 0L, 0));
    wait_for(fd, POLLIN, 2000);
    value("SYS_preadv2", syscall(SYS_preadv2, fd, rooms, 2, -1L, 0L, RWF_NOWAIT));
    for (int offset = 0; offset >= -2; offset -= 2) {
        value("preadv2 with an offset", preadv2(fd, rooms, 2, offset, 0));
        value("pwritev2 with an offset", pwritev2(fd, parts, 2, offset, 0));
    }
    value("preadv2, unknown flag", preadv2(fd, rooms, 2, -1, 1 << 30));
    value("pwritev2, unknown flag", pwritev2(fd, parts, 2, -1, 1 << 30));
    value("pread", pread(fd, a, sizeof a, 0));
    value("pwrite", pwrite(fd, a, sizeof a, 0));
    value("pwritev2 of nothing", pwritev2(fd, parts, 0, -1, 0));
    value("pwritev2, negative", pwritev2(fd, parts, -1, -1, 0));
    value("preadv2, too many", preadv2(fd, rooms, 2000, -1, RWF_NOWAIT));
}

/* recvmmsg and sendmmsg as functions and by syscall(): libuv does all its UDP by syscall(). */
static long by_function(int fd, struct mmsghdr *all, unsigned count, int flags,
                        struct timespec *limit)
{
    return recvmmsg(fd, all, count, flags, limit);
}

static long by_number(int fd, struct mmsghdr *all, unsigned count, int flags,
                      struct timespec *limit)
{
    return syscall(SYS_recvmmsg, fd, all, count, flags, limit);
}

static long send_by_function(int fd, struct mmsghdr *all, unsigned count)
{
    return sendmmsg(fd, all, count, 0);
}

static long send_by_number(int fd, struct mmsghdr *all, unsigned count)
{
    return syscall(SYS_sendmmsg, fd, all, count, 0);
}

enum { MANY = 32 };
static char slots[MANY][256];
static struct iovec parts[MANY];
static struct sockaddr_storage names[MANY];
static struct mmsghdr all[MANY];

static void prepare(void)
{
    for (int i = 0; i < MANY; i++) {
        parts[i] = (struct iovec){slots[i], sizeof slots[i]};
        all[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &names[i],
                                              .msg_namelen = sizeof names[i],
                                              .msg_iov = &parts[i],
                                              .msg_iovlen = 1}};
    }
}

static void show(const char *call, long count)
{
    value(call, count);
    for (long i = 0; i < count; i++) {
        content("  message", slots[i], all[i].msg_len);
        print_address("  from", &names[i]);
    }
}

static void many(int port, long (*take)(int, struct mmsghdr *, unsigned, int, struct timespec *),
                 long (*give)(int, struct mmsghdr *, unsigned))
{
    int fd = udp(host4, port);
    peer("send %s 6000 %d 20 10 0", host4, port);
    await_arrivals(host4);
    prepare();
    show("recvmmsg 4", take(fd, all, 4, 0, NULL));
    prepare();
    show("recvmmsg DONTWAIT", take(fd, all, MANY, MSG_DONTWAIT, NULL));
    value("recvmmsg DONTWAIT", take(fd, all, MANY, MSG_DONTWAIT, NULL));
    peer("late %s 6000 %d 20 3 100", host4, port);
    prepare();
    long got = take(fd, all, 8, MSG_WAITFORONE, NULL);
    yes("WAITFORONE gave one or more", got >= 1 && got <= 3);
    while (got < 3 && got > 0) {
        poll(&(struct pollfd){fd, POLLIN, 0}, 1, 5000);
        long more = take(fd, all, 8, MSG_DONTWAIT, NULL);
        got = more > 0 ? got + more : -1;
    }
    yes("three in all", got == 3);
    value("vlen 0", take(fd, all, 0, 0, NULL));
    /* The time limit is looked at after each datagram only. */
    peer("late %s 6000 %d 20 1 700", host4, port);
    struct timespec limit = {.tv_nsec = 100000000};
    prepare();
    value("recvmmsg with limit", take(fd, all, 2, 0, &limit));
    limit.tv_nsec = -5;
    value("bad limit", take(fd, all, 2, 0, &limit));

    struct to to = at(peer4, SINK);
    peer("reset");
    prepare();
    for (int i = 0; i < MANY; i++) {
        parts[i].iov_len = (size_t)(i + 1);
        all[i].msg_hdr.msg_name = &to.at;
        all[i].msg_hdr.msg_namelen = to.length;
    }
    value("sendmmsg 20", give(fd, all, 20));
    line("msg_len %u and %u", all[0].msg_len, all[19].msg_len);
    line("sink: %s", peer("sunk"));
    value("sendmmsg 0", give(fd, NULL, 0));
    all[3].msg_hdr.msg_namelen = 2;
    value("sendmmsg, fourth is bad", give(fd, all, 10));
    line("sink: %s", peer("sunk"));
    all[0].msg_hdr.msg_namelen = 2;
    value("sendmmsg, first is bad", give(fd, all, 10));
    value("close", close(fd));
}

CASE(vectors_mmsg, ACCELERATED)
{
    many(5602, by_function, send_by_function);
}

CASE(vectors_mmsg_by_syscall, ACCELERATED)
{
    many(5603, by_number, send_by_number);
}

/* Runs of equal datagrams in one sendmmsg, and what interrupts them. */
enum { RUN = 90 };
static char run_bytes[RUN][1600];
static struct iovec run_parts[RUN][2];
static struct mmsghdr run[RUN];

static void prepare_run(int count, size_t size, struct to *to)
{
    memset(run, 0, sizeof run);
    for (int i = 0; i < count; i++) {
        memset(run_bytes[i], 'a' + i % 26, size);
        run_parts[i][0] = (struct iovec){run_bytes[i], size};
        run_parts[i][1] = (struct iovec){"+", 1};
        run[i].msg_hdr = (struct msghdr){.msg_iov = run_parts[i], .msg_iovlen = 1,
                                         .msg_name = to ? &to->at : NULL,
                                         .msg_namelen = to ? to->length : 0};
    }
}

/* Sends the run to an echo and prints what comes back. */
static void echo_run(const char *what, int fd, int count)
{
    value(what, sendmmsg(fd, run, (unsigned)count, 0));
    line("msg_len %u, %u, %u", run[0].msg_len, run[count - 2].msg_len, run[count - 1].msg_len);
    char bytes[2000];
    for (int i = 0; i < count; i++) {
        if (!wait_for(fd, POLLIN, 1500))
            break;
        long got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        bool same = got > 0;
        for (long j = 1; same && j < got && bytes[j] != '+'; j++)
            same = bytes[j] == bytes[0];
        line("  %ld bytes of '%c'%s", got, got > 0 ? bytes[0] : ' ', same || got == 0 ? "" : "?");
    }
}

static void runs(int fd, struct to *to)
{
    prepare_run(RUN, 22, to);
    echo_run("90 of 22 bytes", fd, RUN);
    prepare_run(20, 100, to);
    run_parts[11][0].iov_len = 60;
    echo_run("the twelfth is smaller", fd, 20);
    run_parts[11][0].iov_len = 101;
    echo_run("the twelfth is larger", fd, 20);
    run_parts[11][0].iov_len = 0;
    echo_run("the twelfth is empty", fd, 20);
    prepare_run(20, 50, to);
    run[9].msg_hdr.msg_iovlen = 2;
    echo_run("the tenth is of two parts", fd, 20);
    prepare_run(20, 1400, to);
    echo_run("20 of 1400 bytes", fd, 20);
    prepare_run(10, 1600, to);
    echo_run("larger than the MTU", fd, 10);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_NO_CHECK, &on, sizeof on);
    prepare_run(12, 30, to);
    echo_run("without checksums", fd, 12);
}

CASE(vectors_runs, ACCELERATED)
{
    int fd = udp(host4, 5606);
    struct to echo = at(peer4, ECHO), sink = at(peer4, SINK);
    runs(fd, &echo);
    connect_to(fd, peer4, ECHO);
    runs(fd, NULL);
    close(fd);
    fd = udp(host4, 5607);
    prepare_run(20, 30, &echo);
    for (int i = 1; i < 20; i += 2)
        run[i].msg_hdr.msg_name = &sink.at;
    echo_run("every second one to another address", fd, 20);
    prepare_run(20, 30, &echo);
    run[15].msg_hdr.msg_namelen = 2;
    echo_run("the sixteenth has no address", fd, 20);
    prepare_run(20, 30, &echo);
    run_parts[14][0].iov_base = (void *)8;
    echo_run("the fifteenth has no bytes", fd, 20);
}

CASE(vectors_runs_v6, ACCELERATED)
{
    int fd = udp(host6, 5608);
    struct to echo = at(peer6, ECHO);
    runs(fd, &echo);
}

CASE(vectors_runs_refused, ACCELERATED)
{
    int fd = udp(host4, 5609);
    connect_to(fd, peer4, REFUSED);
    prepare_run(40, 22, NULL);
    value("send", send(fd, "anybody?", 8, 0));
    wait_for(fd, POLLERR, 3000);
    value("sendmmsg", sendmmsg(fd, run, 40, 0));
    shutdown(fd, SHUT_WR);
    value("sendmmsg after shutdown", sendmmsg(fd, run, 40, MSG_NOSIGNAL));
}

/* The other calls that programs make by number. */
CASE(vectors_by_syscall, ACCELERATED)
{
    int fd = (int)syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0);
    done("SYS_socket", fd);
    struct to local = at(host4, 5604), to = at(peer4, ECHO);
    value("SYS_bind", syscall(SYS_bind, fd, &local.at, local.length));
    value("SYS_connect", syscall(SYS_connect, fd, &to.at, to.length));
    for (int i = 0; i < 3; i++) {
        char bytes[64];
        value("SYS_sendto", syscall(SYS_sendto, fd, "by number", 9, 0, NULL, 0));
        wait_for(fd, POLLIN, 2000);
        long got = syscall(SYS_recvfrom, fd, bytes, sizeof bytes, 0, NULL, NULL);
        content("SYS_recvfrom", bytes, got);
        value("SYS_write", syscall(SYS_write, fd, "written", 7));
        wait_for(fd, POLLIN, 2000);
        content("SYS_read", bytes, syscall(SYS_read, fd, bytes, sizeof bytes));
    }
    value("SYS_close", syscall(SYS_close, fd));
    value("SYS_close again", syscall(SYS_close, fd));
    value("SYS_getppid works", syscall(SYS_getppid) > 0);
    value("unknown number", syscall(100000));
}

/* The functions that a program built with _FORTIFY_SOURCE calls (glibc: debug/). */
ssize_t __recv_chk(int, void *, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);
ssize_t __read_chk(int, void *, size_t, size_t);
int __poll_chk(struct pollfd *, nfds_t, int, size_t);
int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);

CASE(vectors_fortified, ACCELERATED)
{
    int fd = udp(host4, 5608);
    connect_to(fd, peer4, ECHO);
    char bytes[64];
    struct pollfd one = {fd, POLLIN, 0};
    struct timespec second = {1, 0};
    for (int i = 0; i < 3; i++) {
        for (int n = 0; n < 3; n++)
            value("send", send(fd, "fortified", 9, 0));
        value("poll", __poll_chk(&one, 1, 2000, sizeof one));
        content("recv", bytes, __recv_chk(fd, bytes, sizeof bytes, sizeof bytes, 0));
        value("ppoll", __ppoll_chk(&one, 1, &second, NULL, sizeof one));
        struct sockaddr_storage from = {0};
        socklen_t length = sizeof from;
        long got = __recvfrom_chk(fd, bytes, 5, sizeof bytes, MSG_TRUNC, (void *)&from, &length);
        content("recvfrom", bytes, got < 5 ? got : 5);
        print_address("from", &from);
        content("read", bytes, __read_chk(fd, bytes, sizeof bytes, sizeof bytes));
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(open("/dev/null", O_WRONLY), 2);
        __recv_chk(fd, bytes, sizeof bytes, 1, MSG_DONTWAIT);
        _exit(9);
    }
    reap(child);
}

/* The number of every hooked call, on one socket. */
CASE(vectors_all_by_syscall, ACCELERATED)
{
    char bytes[64];
    int on = 1, pair[2], waiting = 0;
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    struct iovec part = {"a part", 6}, room = {bytes, sizeof bytes};
    struct timespec second = {1, 0};
    struct to local = at(host4, 5606), to = at(peer4, ECHO);
    int fd = (int)syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0);
    value("SYS_setsockopt", syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    value("SYS_bind", syscall(SYS_bind, fd, &local.at, local.length));
    value("SYS_connect", syscall(SYS_connect, fd, &to.at, to.length));
    value("SYS_getsockname", syscall(SYS_getsockname, fd, &name, &length));
    line("port %d", ntohs(name.sin_port));
    value("SYS_getpeername", syscall(SYS_getpeername, fd, &name, &length));
    line("port %d", ntohs(name.sin_port));
    length = sizeof on;
    value("SYS_getsockopt", syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &on, &length));
    value("SYS_socketpair", syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair));
    int set = (int)syscall(SYS_epoll_create1, 0), old = (int)syscall(SYS_epoll_create, 1);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 5}, got;
    value("SYS_epoll_ctl", syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &event));
    value("SYS_epoll_ctl", syscall(SYS_epoll_ctl, old, EPOLL_CTL_ADD, fd, &event));
    for (int i = 0; i < 3; i++) {
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        value("SYS_sendmsg", syscall(SYS_sendmsg, fd, &message, 0));
        struct pollfd one = {fd, POLLIN, 0};
        value("SYS_poll", syscall(SYS_poll, &one, 1, 2000));
        value("SYS_ppoll", syscall(SYS_ppoll, &one, 1, &second, NULL, 8));
        fd_set reads;
        FD_ZERO(&reads);
        FD_SET(fd, &reads);
        struct timeval time = {1, 0};
        value("SYS_select", syscall(SYS_select, fd + 1, &reads, NULL, NULL, &time));
        value("SYS_pselect6", syscall(SYS_pselect6, fd + 1, &reads, NULL, NULL, &second, NULL));
        value("SYS_epoll_wait", syscall(SYS_epoll_wait, set, &got, 1, 1000));
        value("SYS_epoll_pwait", syscall(SYS_epoll_pwait, set, &got, 1, 1000, NULL, 8));
        value("SYS_epoll_pwait2", syscall(SYS_epoll_pwait2, old, &got, 1, &second, NULL, 8));
        line("of %u", got.data.u32);
        value("SYS_ioctl", syscall(SYS_ioctl, fd, FIONREAD, &waiting));
        line("%d waiting", waiting);
        message.msg_iov = &room;
        content("SYS_recvmsg", bytes, syscall(SYS_recvmsg, fd, &message, MSG_DONTWAIT));
        value("SYS_writev", syscall(SYS_writev, fd, &part, 1));
        value("SYS_poll", syscall(SYS_poll, &one, 1, 2000));
        content("SYS_readv", bytes, syscall(SYS_readv, fd, &room, 1));
    }
    int copy = (int)syscall(SYS_dup, fd), high = (int)syscall(SYS_fcntl, fd, F_DUPFD, 300);
    done("SYS_dup", copy);
    value("SYS_fcntl", high);
    value("SYS_dup2", syscall(SYS_dup2, fd, 301));
    value("SYS_dup3", syscall(SYS_dup3, fd, 302, O_CLOEXEC));
    value("SYS_write to a copy", syscall(SYS_write, 302, "copied", 6));
    wait_for(301, POLLIN, 2000);
    content("SYS_read", bytes, syscall(SYS_read, high, bytes, sizeof bytes));
    value("SYS_close_range", syscall(SYS_close_range, 300, 302, 0));
    value("SYS_read of a closed one", syscall(SYS_read, 301, bytes, 1));
    value("SYS_listen", syscall(SYS_listen, fd, 5));
    value("SYS_accept", syscall(SYS_accept, fd, NULL, NULL));
    value("SYS_accept4", syscall(SYS_accept4, fd, NULL, NULL, 0));
    pid_t child = (pid_t)syscall(SYS_fork);
    if (child == 0)
        _exit(syscall(SYS_write, copy, "of a child", 10) == 10 ? 0 : 1);
    reap(child);
    wait_for(fd, POLLIN, 2000);
    content("SYS_read", bytes, syscall(SYS_read, fd, bytes, sizeof bytes));
    value("SYS_shutdown", syscall(SYS_shutdown, fd, SHUT_RD));
    value("SYS_read", syscall(SYS_read, fd, bytes, sizeof bytes));
}

CASE(vectors_splice_sendfile, ACCELERATED)
{
    int fd = udp(host4, 5605), ends[2];
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 3; i++) {
        value("send", send(fd, "plain", 5, 0));
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    FILE *file = tmpfile();
    fputs("from a file", file);
    fflush(file);
    off_t offset = 5;
    value("sendfile", sendfile(fd, fileno(file), &offset, 100));
    line("offset %ld", (long)offset);
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
    value("pipe", pipe(ends));
    value("write", write(ends[1], "from a pipe", 11));
    value("splice", splice(ends[0], NULL, fd, NULL, 100, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
    value("send", send(fd, "into a pipe", 11, 0));
    wait_for(fd, POLLIN, 2000);
    value("splice from a UDP socket", splice(fd, NULL, ends[1], NULL, 100, SPLICE_F_NONBLOCK));
    receive(fd, MSG_DONTWAIT);
}
