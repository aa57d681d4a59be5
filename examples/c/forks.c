/*
 * Takes connections, then forks again and again, and tells what a fork costs the parent and when
 * the child has answered on one of the connections.
 *
 *   forks [--bind ADDRESS] [--port PORT] [--connections N] [--rounds N] [--json]
 */
#include "common.h"

#include <sys/wait.h>

static int listener_at(const char *text, uint16_t port)
{
    struct sockaddr_storage local;
    socklen_t length = address(text, port, &local);
    int fd = socket(local.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&local, length) < 0 || listen(fd, 1024) < 0)
        fail("listen on %s port %u", text, port);
    return fd;
}

/* Until fork() is back here, and until the child has written to the connection. */
static void fork_once(int connection, uint64_t *back, uint64_t *answered)
{
    int told[2];
    if (pipe(told) < 0)
        fail("pipe");
    uint64_t start = now_ns(), end;
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        bool sent = send(connection, "x", 1, MSG_NOSIGNAL) == 1;
        end = now_ns();
        _exit(!sent || write(told[1], &end, sizeof end) != sizeof end);
    }
    *back = now_ns() - start;
    int status;
    if (read(told[0], &end, sizeof end) != sizeof end || waitpid(child, &status, 0) < 0 || status)
        fail("the child");
    *answered = end - start;
    close(told[0]);
    close(told[1]);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"bind", required_argument, 0, 'b'},   {"port", required_argument, 0, 'p'},
        {"connections", required_argument, 0, 'c'}, {"rounds", required_argument, 0, 'r'},
        {"json", no_argument, 0, 'j'},         {0, 0, 0, 0},
    };
    const char *local = "0.0.0.0";
    uint16_t port = 7007;
    long connections = 1000, rounds = 50;
    bool json = false;
    int option, last = -1;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'b': local = optarg; break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 'c': connections = number("connections", optarg, 1, 1000000); break;
        case 'r': rounds = number("rounds", optarg, 1, 10000); break;
        case 'j': json = true; break;
        default: return 2;
        }
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = listener_at(local, port);
    for (long taken = 0; taken < connections; taken++)
        if ((last = accept(listener, NULL, NULL)) < 0)
            fail("accept");
    uint64_t *back = calloc((size_t)rounds, sizeof *back);
    uint64_t *answered = calloc((size_t)rounds, sizeof *answered);
    for (long round = 0; round < rounds; round++)
        fork_once(last, &back[round], &answered[round]);
    sort_times(back, rounds);
    sort_times(answered, rounds);
    printf(json ? "{\"connections\":%ld,\"fork_us\":%.1f,\"answer_us\":%.1f}\n"
                : "%ld connections: fork %.1f us, the child's answer after %.1f us\n",
           connections, percentile(back, rounds, 0.5), percentile(answered, rounds, 0.5));
    return 0;
}
