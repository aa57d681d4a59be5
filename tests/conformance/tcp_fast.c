/*
 * Fast Open of connections: MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE. The peer's
 * TCP servers give cookies and take data of SYNs that have one.
 */
#include "case.h"

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>

#ifndef TCP_FASTOPEN_NO_COOKIE
#define TCP_FASTOPEN_NO_COOKIE 34
#endif

static char text[8000];

static void fill(void)
{
    for (unsigned i = 0; i < sizeof text; i++)
        text[i] = 'a' + i % 23;
}

static int fresh(const char *host, int flags)
{
    return socket(strchr(host, ':') ? AF_INET6 : AF_INET, SOCK_STREAM | flags, 0);
}

static long fast(int fd, const char *host, int port, size_t size, int flags)
{
    struct to to = at(host, port);
    return value("MSG_FASTOPEN", sendto(fd, text, size, MSG_FASTOPEN | MSG_NOSIGNAL | flags,
                                        (void *)&to.at, to.length));
}

/* Reads back what was sent, and tells what became of the data of the SYN. */
static void echoed(int fd, size_t size)
{
    static char back[sizeof text];
    memset(back, 0, sizeof back);
    value("recv", recv(fd, back, size, MSG_WAITALL));
    yes("the same", memcmp(back, text, size) == 0);
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    line("  data in the SYN %d, failure %d", info.tcpi_options & TCPI_OPT_SYN_DATA,
         ((unsigned char *)&info)[7] >> 1 & 3);
}

static void ask_for_cookie(const char *host)
{
    int fd = fresh(host, 0);
    fast(fd, host, T_ECHO, 5, 0);
    echoed(fd, 5);
    close(fd);
}

CASE(tcp_fast_send, ACCELERATED)
{
    fill();
    ask_for_cookie(peer4);
    int fd = fresh(peer4, 0);
    fast(fd, peer4, T_ECHO, 100, 0);
    echoed(fd, 100);
    fast(fd, peer4, T_ECHO, 100, 0);
    value("alone", send(fd, text, 5, MSG_FASTOPEN));
    value("write", write(fd, text, 50));
    echoed(fd, 50);
    struct to to = at(peer4, T_ECHO);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    value("AF_UNSPEC", sendto(fd, text, 5, MSG_FASTOPEN, &none, sizeof none));
    close(fd);
    /* More than a SYN takes. */
    fd = fresh(peer4, 0);
    struct iovec parts[3] = {{text, 700}, {text + 700, 1800}, {text + 2500, 500}};
    struct msghdr message = {
        .msg_name = &to.at, .msg_namelen = to.length, .msg_iov = parts, .msg_iovlen = 3};
    value("sendmsg", sendmsg(fd, &message, MSG_FASTOPEN));
    echoed(fd, 3000);
    close(fd);
    fd = fresh(peer4, 0);
    fast(fd, peer4, T_ECHO, 0, 0);
    value("write", write(fd, text, 9));
    echoed(fd, 9);
    close(fd);
    fd = fresh(peer4, 0);
    fast(fd, peer4, T_REFUSED, 100, 0);
    fast(fd, peer4, T_ECHO, 100, 0);
    echoed(fd, 100);
}

CASE(tcp_fast_nonblocking, ACCELERATED)
{
    fill();
    int fd = fresh(peer6, SOCK_NONBLOCK);
    fast(fd, peer6, T_ECHO, 3000, 0);
    wait_for(fd, POLLOUT, 3000);
    fast(fd, peer6, T_ECHO, 3000, 0);
    fcntl(fd, F_SETFL, 0);
    echoed(fd, 3000);
    fast(fd, peer6, T_ECHO, 3000, 0);
    close(fd);
    fd = fresh(peer6, 0);
    long sent = fast(fd, peer6, T_ECHO, 3000, MSG_DONTWAIT);
    wait_for(fd, POLLOUT, 3000);
    connect_to(fd, peer6, T_ECHO);
    value("write", write(fd, text + sent, 3000 - sent));
    echoed(fd, 3000);
    close(fd);
    fd = fresh(peer6, SOCK_NONBLOCK);
    fast(fd, peer6, T_REFUSED, 100, 0);
    wait_for(fd, POLLIN | POLLOUT, 3000);
    value("write", send(fd, text, 5, MSG_NOSIGNAL));
    fast(fd, peer6, T_ECHO, 100, 0);
    close(fd);
    fd = fresh(peer6, SOCK_NONBLOCK);
    fast(fd, peer6, T_ECHO, 0, 0);
    wait_for(fd, POLLOUT, 3000);
    connect_to(fd, peer6, T_ECHO);
    close(fd);
}

static int deferred(const char *host, int port, int flags)
{
    int fd = fresh(host, flags), on = 1;
    value("TCP_FASTOPEN_CONNECT",
          setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on));
    connect_to(fd, host, port);
    return fd;
}

CASE(tcp_fast_deferred, ACCELERATED)
{
    fill();
    int fd = deferred(peer4, T_ECHO, 0);
    value("write", write(fd, text, 10));
    echoed(fd, 10);
    close(fd);
    fd = deferred(peer4, T_ECHO, SOCK_NONBLOCK);
    wait_for(fd, POLLIN | POLLOUT, 1000);
    connect_to(fd, peer4, T_ECHO);
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    value("getpeername", getpeername(fd, (void *)&name, &length));
    receive(fd, 0);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLIN | EPOLLET};
    value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    long count = epoll_wait(set, &event, 1, 1000);
    readiness("epoll_wait", count, event.events);
    value("write", write(fd, text, 100));
    count = epoll_wait(set, &event, 1, 3000);
    yes("epoll_wait", count == 1 && event.events & EPOLLOUT);
    fcntl(fd, F_SETFL, 0);
    echoed(fd, 100);
    close(set);
    close(fd);
    fd = deferred(peer4, T_ECHO, 0);
    value("write", write(fd, text, 5000));
    echoed(fd, 5000);
    close(fd);
    fd = deferred(peer4, T_ECHO, 0);
    fast(fd, peer4, T_ECHO, 100, 0);
    echoed(fd, 100);
    close(fd);
    fd = deferred(peer4, T_ECHO, SOCK_NONBLOCK);
    value("empty", send(fd, text, 0, 0));
    wait_for(fd, POLLOUT, 3000);
    fcntl(fd, F_SETFL, 0);
    value("write", write(fd, text, 10));
    echoed(fd, 10);
    close(fd);
    fd = deferred(peer4, T_REFUSED, 0);
    value("write", send(fd, text, 10, MSG_NOSIGNAL));
    close(fd);
}

/* What has sent nothing yet ends without a word, or is connected anew. */
CASE(tcp_fast_deferred_ends, ACCELERATED)
{
    fill();
    ask_for_cookie(peer4);
    int fd = deferred(peer4, T_ECHO, 0);
    value("shutdown", shutdown(fd, SHUT_WR));
    wait_for(fd, POLLIN | POLLOUT, 1000);
    value("write", send(fd, text, 10, MSG_NOSIGNAL));
    close(fd);
    close(deferred(peer4, T_ECHO, 0));
    fd = deferred(peer4, T_ECHO, 0);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    value("AF_UNSPEC", connect(fd, &none, sizeof none));
    fast(fd, peer4, T_ECHO, 10, 0);
    echoed(fd, 10);
    close(fd);
    FILE *file = tmpfile();
    fwrite(text, 1, 4000, file);
    fflush(file);
    fd = deferred(peer4, T_ECHO, 0);
    off_t from = 0;
    value("sendfile", sendfile(fd, fileno(file), &from, 4000));
    echoed(fd, 4000);
    close(fd);
    pid_t child = fork();
    if (child == 0) {
        fd = deferred(peer4, T_ECHO, 0);
        value("child", write(fd, text, 20));
        echoed(fd, 20);
        fflush(stdout);
        _exit(0);
    }
    reap(child);
}

/* Data without a cookie: the peer takes only the SYN, and the data follows. */
CASE(tcp_fast_without_cookie, ACCELERATED)
{
    fill();
    for (int i = 0; i < 2; i++) {
        int fd = fresh(peer4, 0), on = 1;
        value("TCP_FASTOPEN_NO_COOKIE",
              setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, &on, sizeof on));
        fast(fd, peer4, T_ECHO, 2000, 0);
        echoed(fd, 2000);
        close(fd);
    }
    ask_for_cookie(peer4);
}
