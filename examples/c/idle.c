/*
 * Waits, with a bound UDP socket and an epoll set, and tells how much processor time that took.
 *
 *   idle [--bind ADDRESS] [--port PORT] [--seconds S] [--json]
 *
 * The clock starts at the first datagram, or at once with --now; datagrams are read and dropped.
 */
#include "common.h"

#include <sys/epoll.h>

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"bind", required_argument, 0, 'b'},    {"port", required_argument, 0, 'p'},
        {"seconds", required_argument, 0, 's'}, {"now", no_argument, 0, 'n'},
        {"json", no_argument, 0, 'j'},          {0, 0, 0, 0},
    };
    const char *local = "0.0.0.0";
    uint16_t port = 7007;
    long seconds = 5;
    bool json = false, started = false;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'b': local = optarg; break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 's': seconds = number("seconds", optarg, 1, 86400); break;
        case 'n': started = true; break;
        case 'j': json = true; break;
        default: return 2;
        }
    }
    stop_on_signals();
    int fd = bound_socket(local, port, false);
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event datagrams = {.events = EPOLLIN, .data.fd = fd};
    if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, fd, &datagrams) < 0)
        fail("epoll");
    uint64_t start = now_ns(), cpu = cpu_ns();
    long received = 0;
    while (!atomic_load(&stopping)) {
        int64_t left_ms = seconds * 1000 - (int64_t)((now_ns() - start) / 1000000u);
        if (started && left_ms <= 0)
            break;
        struct epoll_event ready;
        int count = epoll_wait(set, &ready, 1, started ? (int)left_ms : -1);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        char datagram[2048];
        if (count == 1 && recv(fd, datagram, sizeof datagram, MSG_DONTWAIT) >= 0)
            received++;
        if (!started && received) {
            started = true;
            start = now_ns();
            cpu = cpu_ns();
        }
    }
    double used_ms = (double)(cpu_ns() - cpu) * 1e-6;
    printf(json ? "{\"seconds\":%.3f,\"cpu_ms\":%.3f,\"received\":%ld}\n"
                : "%.3f s waited, %.3f ms of processor time, %ld datagrams\n",
           (double)(now_ns() - start) * 1e-9, used_ms, received);
    return 0;
}
