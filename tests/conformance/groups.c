/* SO_REUSEPORT and SO_REUSEADDR groups over threads and processes. */
#include "case.h"

#include <stdatomic.h>
#include <sys/mman.h>

static int member(int port)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), on = 1;
    struct to local = at(host4, port);
    value("SO_REUSEPORT", setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
    value("bind", bind(fd, (struct sockaddr *)&local.at, local.length));
    return fd;
}

/* Forty datagrams from forty ports. */
static void from_forty(int port)
{
    for (int i = 0; i < 40; i++)
        peer("send %s %d %d 8 1 0", host4, 6200 + i, port);
}

static int drain(int fd)
{
    char bytes[64];
    int count = 0;
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        count++;
    return count;
}

/* Reads from all members until `wanted` datagrams have come, and a moment longer; how many each
 * had. Gives the sum. */
static int drain_all(const int *members, int *counts, int wanted)
{
    struct pollfd set[4];
    int total = 0;
    for (int i = 0; i < 4; i++) {
        set[i] = (struct pollfd){members[i], POLLIN, 0};
        counts[i] = 0;
    }
    while (poll(set, 4, total < wanted ? 5000 : 20) > 0) {
        for (int i = 0; i < 4; i++) {
            int count = drain(members[i]);
            counts[i] += count;
            total += count;
        }
    }
    return total;
}

static int serving(const int *counts)
{
    int members = 0;
    for (int i = 0; i < 4; i++)
        members += counts[i] > 0;
    return members;
}

CASE(groups_reuseport, ACCELERATED)
{
    int members[4], counts[4];
    for (int i = 0; i < 4; i++)
        members[i] = member(6301);
    from_forty(6301);
    line("total %d", drain_all(members, counts, 40));
    yes("spread", serving(counts) >= 3);
    line("one flow stays with one member");
    peer("send %s 6250 6301 8 20 0", host4);
    line("total %d", drain_all(members, counts, 20));
    line("members %d", serving(counts));
    line("a member leaves, nothing is lost for the others");
    value("close", close(members[1]));
    members[1] = -1;
    from_forty(6301);
    line("total %d", drain_all(members, counts, 40));
    int plain = udp(host4, 6301);
    value("close", close(plain));
}

struct worker {
    int port, count;
};

/* How many workers, threads or processes, have their sockets; then, whether all was sent. */
static atomic_int *ready;

static void nobody_is_ready(void)
{
    int how = MAP_SHARED | MAP_ANONYMOUS;
    ready = mmap(NULL, 2 * sizeof *ready, PROT_READ | PROT_WRITE, how, -1, 0);
    yes("mmap", ready != MAP_FAILED);
}

static void wait_for_workers(int workers)
{
    for (int i = 0; i < 5000 && atomic_load(ready) < workers; i++)
        pause_ms(1);
    line("ready %d", atomic_load(ready));
}

static void *serve(void *argument)
{
    struct worker *worker = argument;
    struct to local = at(host4, worker->port);
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
    struct timeval patience = {.tv_usec = 500000};
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (bind(fd, (struct sockaddr *)&local.at, local.length) < 0)
        return NULL;
    atomic_fetch_add(ready, 1);
    char bytes[64];
    for (bool last = false; !last;) {
        bool sent = atomic_load(ready + 1);
        bool got = recv(fd, bytes, sizeof bytes, 0) > 0;
        worker->count += got;
        last = sent && !got;
    }
    close(fd);
    return NULL;
}

/* unbound, knot: a thread for each socket of the group. */
CASE(groups_threads, ACCELERATED)
{
    struct worker workers[3] = {{6302, 0}, {6302, 0}, {6302, 0}};
    pthread_t threads[3];
    nobody_is_ready();
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, serve, &workers[i]);
    wait_for_workers(3);
    from_forty(6302);
    atomic_store(ready + 1, 1);
    int total = 0, served = 0;
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        total += workers[i].count;
        served += workers[i].count > 0;
    }
    line("total %d", total);
    yes("spread", served >= 2);
}

/* nsd, nginx: a process for each socket of the group; one is killed. */
CASE(groups_processes, ACCELERATED)
{
    int ends[2];
    pid_t children[2];
    nobody_is_ready();
    value("pipe", pipe(ends));
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            struct worker worker = {6303, 0};
            serve(&worker);
            _exit(write(ends[1], &worker.count, sizeof worker.count) != sizeof worker.count);
        }
    }
    wait_for_workers(2);
    from_forty(6303);
    atomic_store(ready + 1, 1);
    int total = 0, served = 0;
    for (int i = 0; i < 2; i++) {
        int count = 0;
        value("read", read(ends[0], &count, sizeof count));
        total += count;
        served += count > 0;
        reap(children[i]);
    }
    line("total %d", total);
    yes("spread", served == 2);
    line("a killed member leaves the group");
    pid_t doomed = fork();
    if (doomed == 0) {
        member(6304);
        atomic_fetch_add(ready, 1);
        pause_ms(60000);
    }
    wait_for_workers(3);
    int fd = member(6304), alone[4] = {fd, -1, -1, -1}, counts[4];
    kill(doomed, SIGKILL);
    reap(doomed);
    pause_ms(500);
    from_forty(6304);
    line("total %d", drain_all(alone, counts, 40));
}

/* The sockets of a group are made by the parent, used by the children. */
CASE(groups_inherited, ACCELERATED)
{
    int members[2] = {member(6305), member(6305)}, ends[2];
    pid_t children[2];
    nobody_is_ready();
    value("pipe", pipe(ends));
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            struct pollfd set = {members[i], POLLIN, 0};
            int count = 0;
            close(members[1 - i]);
            atomic_fetch_add(ready, 1);
            for (bool last = false; !last;) {
                bool sent = atomic_load(ready + 1);
                last = poll(&set, 1, 500) == 0 && sent;
                count += drain(members[i]);
            }
            _exit(write(ends[1], &count, sizeof count) != sizeof count);
        }
    }
    close(members[0]);
    close(members[1]);
    wait_for_workers(2);
    from_forty(6305);
    atomic_store(ready + 1, 1);
    int total = 0;
    for (int i = 0; i < 2; i++) {
        int count = 0;
        value("read", read(ends[0], &count, sizeof count));
        total += count;
        reap(children[i]);
    }
    line("total %d", total);
}

/* SO_REUSEADDR: two sockets on one port, the last one bound hears. */
CASE(groups_reuseaddr, ACCELERATED)
{
    int sockets[2], on = 1;
    struct to local = at(host4, 6306);
    for (int i = 0; i < 2; i++) {
        sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(sockets[i], SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        value("bind", bind(sockets[i], (struct sockaddr *)&local.at, local.length));
    }
    peer("send %s 6000 6306 5 3 0", host4);
    for (int k = 0; k < 3; k++) {
        wait_for(sockets[1], POLLIN, 2000);
        receive(sockets[1], MSG_DONTWAIT);
    }
    for (int i = 0; i < 2; i++)
        receive(sockets[i], MSG_DONTWAIT);
    value("close", close(sockets[1]));
    peer("send %s 6000 6306 5 2 0", host4);
    wait_for(sockets[0], POLLIN, 2000);
    receive(sockets[0], MSG_DONTWAIT);
    wait_for(sockets[0], POLLIN, 2000);
    receive(sockets[0], MSG_DONTWAIT);
}

/* A socket on the address beats one on any address. */
CASE(groups_specific_beats_any, ACCELERATED)
{
    int on = 1, any = socket(AF_INET, SOCK_DGRAM, 0), own = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(any, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(own, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct to wide = at("", 6307), narrow = at(host4, 6307);
    value("bind", bind(any, (struct sockaddr *)&wide.at, wide.length));
    value("bind", bind(own, (struct sockaddr *)&narrow.at, narrow.length));
    peer("send %s 6000 6307 5 2 0", host4);
    wait_for(own, POLLIN, 2000);
    receive(own, 0);
    wait_for(own, POLLIN, 2000);
    receive(own, 0);
    receive(any, MSG_DONTWAIT);
    value("close", close(own));
    peer("send %s 6000 6307 5 2 0", host4);
    wait_for(any, POLLIN, 2000);
    receive(any, 0);
    wait_for(any, POLLIN, 2000);
    receive(any, 0);
}
