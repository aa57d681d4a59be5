/*
 * Sends every datagram back: non-blocking socket, edge-triggered epoll, SIGTERM by a signalfd in
 * the same set.
 *
 *   udpecho-epoll [--bind ADDRESS] [--port PORT]
 */
#include "common.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

/* Serves the socket until it would block; the next edge comes after that. */
static void drain(int fd)
{
    static char datagram[65536];
    for (;;) {
        struct sockaddr_storage peer;
        socklen_t length = sizeof peer;
        ssize_t got = recvfrom(fd, datagram, sizeof datagram, 0, (struct sockaddr *)&peer, &length);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got < 0 && errno != ECONNREFUSED && errno != EINTR)
            fail("recvfrom");
        if (got >= 0)
            sendto(fd, datagram, (size_t)got, 0, (struct sockaddr *)&peer, length);
    }
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"bind", required_argument, 0, 'b'}, {"port", required_argument, 0, 'p'}, {0, 0, 0, 0}};
    const char *local = "0.0.0.0";
    uint16_t port = 7007;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'b': local = optarg; break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        default: return 2;
        }
    }
    int fd = bound_socket(local, port, false);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);

    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    int signals = signalfd(-1, &ends, SFD_CLOEXEC);
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event datagrams = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
    struct epoll_event end = {.events = EPOLLIN, .data.fd = signals};
    if (signals < 0 || set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, fd, &datagrams) < 0 ||
        epoll_ctl(set, EPOLL_CTL_ADD, signals, &end) < 0)
        fail("epoll");

    for (;;) {
        struct epoll_event ready[8];
        int count = epoll_wait(set, ready, 8, -1);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (ready[i].data.fd == signals)
                return 0;
            drain(fd);
        }
    }
}
