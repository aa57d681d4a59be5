/*
 * Sends back what every connection sends: one thread, level-triggered epoll.
 *
 *   tcpecho [--bind ADDRESS] [--port PORT]
 */
#include "common.h"

#include <netinet/tcp.h>
#include <sys/epoll.h>

static void watch(int set, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

static void take_connection(int set, int listener)
{
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(set, fd);
}

/* One read and its answer; the connection ends with its peer's. */
static void serve(int fd)
{
    static char bytes[65536];
    ssize_t got = recv(fd, bytes, sizeof bytes, 0);
    for (ssize_t sent = 0; sent < got;) {
        ssize_t more = send(fd, bytes + sent, (size_t)(got - sent), MSG_NOSIGNAL);
        if (more < 0 && errno != EINTR)
            got = -1;
        sent += more > 0 ? more : 0;
    }
    if (got <= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"bind", required_argument, 0, 'b'}, {"port", required_argument, 0, 'p'}, {0, 0, 0, 0}};
    const char *local = "0.0.0.0";
    uint16_t port = 7007;
    int option, on = 1;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'b': local = optarg; break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        default: return 2;
        }
    }
    stop_on_signals();
    struct sockaddr_storage name;
    socklen_t length = address(local, port, &name);
    int listener = socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&name, length) < 0 ||
        listen(listener, 1024) < 0)
        fail("listen on %s port %u", local, port);
    int set = epoll_create1(EPOLL_CLOEXEC);
    if (set < 0)
        fail("epoll_create1");
    watch(set, listener);
    while (!atomic_load(&stopping)) {
        struct epoll_event ready[64];
        int count = epoll_wait(set, ready, 64, -1);
        for (int i = 0; i < count; i++) {
            if (ready[i].data.fd == listener)
                take_connection(set, listener);
            else
                serve(ready[i].data.fd);
        }
    }
    return 0;
}
