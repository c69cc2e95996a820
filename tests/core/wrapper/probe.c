/* What a job's command finds itself with, or an end of its own choosing: the tests' command.
 *
 * probe show ARG...   records on stdout, each a letter, its text and a NUL: a argument, e environment
 *                     variable, c working directory, i what stdin is, f open descriptor, g ignored and
 *                     b blocked signal
 * probe die N         dies by signal N
 * probe keep N MS     says "ready", lets no signal end it, and exits with N after MS milliseconds
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void heard(int number) { (void)number; }

static void record(char kind, const char *text) {
    putchar(kind);
    fwrite(text, 1, strlen(text) + 1, stdout);
}

static void record_number(char kind, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    record(kind, text);
}

static int show(int argc, char **argv) {
    char path[PATH_MAX];
    sigset_t blocked;
    for (int i = 2; i < argc; i++) record('a', argv[i]);
    for (char **e = environ; *e; e++) record('e', *e);
    record('c', getcwd(path, sizeof path) ? path : "");
    ssize_t length = readlink("/proc/self/fd/0", path, sizeof path - 1);
    if (length >= 0) {
        path[length] = 0;
        record('i', path);
    }
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0) record_number('f', fd);
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    for (int number = 1; number < 32; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            record_number('g', number);
        if (sigismember(&blocked, number) == 1) record_number('b', number);
    }
    return 0;
}

static int keep(int code, long ms) {
    struct timespec now, end;
    for (int number = 1; number < 32; number++) signal(number, heard);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += ms / 1000;
    end.tv_nsec += ms % 1000 * 1000000;
    puts("ready");
    fflush(stdout);
    do {
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
    return code;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "show")) return show(argc, argv);
    if (argc > 2 && !strcmp(argv[1], "die")) {
        signal(atoi(argv[2]), SIG_DFL);
        raise(atoi(argv[2]));
        return 0;
    }
    if (argc > 3 && !strcmp(argv[1], "keep")) return keep(atoi(argv[2]), atol(argv[3]));
    return 2;
}
