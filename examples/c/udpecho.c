/*
 * Sends every datagram back to where it came from: one thread, blocking recvfrom and sendto.
 *
 *   udpecho [--bind ADDRESS] [--port PORT]
 */
#include "common.h"

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
    stop_on_signals();
    int fd = bound_socket(local, port, false);
    static char datagram[65536];
    while (!atomic_load(&stopping)) {
        struct sockaddr_storage peer;
        socklen_t length = sizeof peer;
        ssize_t got = recvfrom(fd, datagram, sizeof datagram, 0, (struct sockaddr *)&peer, &length);
        if (got < 0 && (errno == EINTR || errno == ECONNREFUSED))
            continue;
        if (got < 0)
            fail("recvfrom");
        if (sendto(fd, datagram, (size_t)got, 0, (struct sockaddr *)&peer, length) < 0)
            fprintf(stderr, "sendto: %s\n", strerror(errno));
    }
    return 0;
}
