/*
 * Counts UDP datagrams as fast as it can.
 *
 * Every thread has a socket of its own in one SO_REUSEPORT group and takes up to a batch of
 * datagrams per recvmmsg(2). Prints the rate each second, and the whole at the end.
 *
 *   udpreceiver [--bind ADDRESS]... [--port PORT] [--threads N] [--batch N] [--rcvbuf BYTES]
 *               [--seconds S] [--count N] [--json]
 *
 * --seconds and --count count from the first datagram. Several --bind give each thread a socket on
 * each address in turn (thread i takes address i modulo their number).
 */
#include "common.h"

#include <pthread.h>

enum { MAX_THREADS = 64, MAX_ADDRESSES = 16, MAX_BATCH = 1024, SLOT_BYTES = 2048 };

static struct {
    const char *addresses[MAX_ADDRESSES];
    int address_count;
    uint16_t port;
    int threads, batch, rcvbuf;
    long seconds, count;
    bool json;
} options = {.port = 4321, .threads = 1, .batch = MAX_BATCH};

/* One per thread, a cache line each, so that counting costs no traffic between processors. */
static struct counter {
    _Alignas(64) atomic_ullong packets;
    atomic_ullong bytes;
} counters[MAX_THREADS];

static void parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"bind", required_argument, 0, 'b'},    {"port", required_argument, 0, 'p'},
        {"threads", required_argument, 0, 't'}, {"batch", required_argument, 0, 'n'},
        {"rcvbuf", required_argument, 0, 'r'},  {"seconds", required_argument, 0, 's'},
        {"count", required_argument, 0, 'c'},   {"json", no_argument, 0, 'j'},
        {0, 0, 0, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'b':
            if (options.address_count == MAX_ADDRESSES)
                fail("at most %d addresses", MAX_ADDRESSES);
            options.addresses[options.address_count++] = optarg;
            break;
        case 'p': options.port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 't': options.threads = (int)number("threads", optarg, 1, MAX_THREADS); break;
        case 'n': options.batch = (int)number("batch", optarg, 1, MAX_BATCH); break;
        case 'r': options.rcvbuf = (int)number("rcvbuf", optarg, 1, 1 << 30); break;
        case 's': options.seconds = number("seconds", optarg, 1, 86400); break;
        case 'c': options.count = number("count", optarg, 1, 1L << 40); break;
        case 'j': options.json = true; break;
        default: exit(2);
        }
    }
    if (options.address_count == 0)
        options.addresses[options.address_count++] = "0.0.0.0";
}

static void *receive(void *argument)
{
    struct counter *counter = argument;
    int index = (int)(counter - counters);
    const char *local = options.addresses[index % options.address_count];
    int fd = bound_socket(local, options.port, options.threads > 1);
    if (options.rcvbuf)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &options.rcvbuf, sizeof options.rcvbuf);
    /* So that the thread sees the end although nothing arrives any more. */
    struct timeval patience = {.tv_usec = 100000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);

    size_t batch = (size_t)options.batch;
    char *memory = malloc(batch * SLOT_BYTES);
    struct mmsghdr *messages = calloc(batch, sizeof *messages);
    struct iovec *slots = calloc(batch, sizeof *slots);
    if (!memory || !messages || !slots)
        fail("memory");
    for (size_t i = 0; i < batch; i++) {
        slots[i] = (struct iovec){memory + i * SLOT_BYTES, SLOT_BYTES};
        messages[i].msg_hdr.msg_iov = &slots[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        int got = recvmmsg(fd, messages, (unsigned)batch, MSG_WAITFORONE, NULL);
        if (got < 0) {
            if (errno == EAGAIN || errno == EINTR || errno == ECONNREFUSED)
                continue;
            fail("recvmmsg");
        }
        unsigned long long bytes = 0;
        for (int i = 0; i < got; i++)
            bytes += messages[i].msg_len;
        atomic_fetch_add_explicit(&counter->packets, (unsigned)got, memory_order_relaxed);
        atomic_fetch_add_explicit(&counter->bytes, bytes, memory_order_relaxed);
    }
    return NULL;
}

static void totals(unsigned long long *packets, unsigned long long *bytes)
{
    *packets = *bytes = 0;
    for (int i = 0; i < options.threads; i++) {
        *packets += atomic_load_explicit(&counters[i].packets, memory_order_relaxed);
        *bytes += atomic_load_explicit(&counters[i].bytes, memory_order_relaxed);
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    stop_on_signals();
    setvbuf(stdout, NULL, _IOLBF, 0);
    pthread_t threads[MAX_THREADS];
    for (int i = 0; i < options.threads; i++)
        if (pthread_create(&threads[i], NULL, receive, &counters[i]))
            fail("pthread_create");

    unsigned long long packets, bytes, shown = 0;
    uint64_t first = 0, last = 0, second = now_ns(), cpu_before = 0, cpu_after = 0;
    unsigned long long previous = 0;
    while (!atomic_load(&stopping)) {
        sleep_ms(2);
        uint64_t now = now_ns();
        totals(&packets, &bytes);
        if (packets != previous) {
            if (!first) {
                first = second = now;
                shown = packets;
                cpu_before = cpu_ns();
            }
            last = now;
            cpu_after = cpu_ns();
            previous = packets;
        }
        if (now - second >= 1000000000u) {
            double rate = (double)(packets - shown) * 1e9 / (double)(now - second);
            if (!options.json && first)
                printf("%6.1f s  %10.0f packets/s\n", (double)(now - first) * 1e-9, rate);
            shown = packets;
            second = now;
        }
        uint64_t most_ns = (uint64_t)options.seconds * 1000000000u;
        bool late = options.seconds && first && now - first >= most_ns;
        bool full = options.count && packets >= (unsigned long long)options.count;
        if (late || full)
            atomic_store(&stopping, true);
    }
    for (int i = 0; i < options.threads; i++)
        pthread_join(threads[i], NULL);

    totals(&packets, &bytes);
    double seconds = last > first ? (double)(last - first) * 1e-9 : 0;
    double rate = seconds > 0 ? (double)packets / seconds : 0;
    double cpu = packets ? (double)(cpu_after - cpu_before) / (double)packets : 0;
    printf(options.json ? "{\"packets\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"rate\":%.0f,"
                          "\"cpu_ns_per_packet\":%.1f}\n"
                        : "%llu packets, %llu bytes in %.3f s: %.0f packets/s, %.0f ns of "
                          "processor time each\n",
           packets, bytes, seconds, rate, cpu);
    return 0;
}
