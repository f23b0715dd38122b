/* Runs all stages of one compiled kernel on a workspace read from a file, forward and back, and
 * writes the workspace that they leave: `driver IN OUT`. test_arm.py wrote the file: the number of
 * buffers, each one's size and bytes; then, per stage, nine pointers of a Task as (buffer, offset)
 * and the bytes of all that follows them in it. */
#include KERNEL
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_BUFFERS = 64, POINTERS = 9 };
typedef void call(const Task *);
static call *const forward[] = {FORWARD}, *const backward[] = {BACKWARD};

static void take(void *to, size_t size, FILE *file) {
    if (fread(to, 1, size, file) != size) exit(3);
}

int main(int count, char **words) {
    FILE *file = count == 3 ? fopen(words[1], "rb") : NULL;
    int64_t buffers, size[MOST_BUFFERS];
    char *buffer[MOST_BUFFERS];
    Task task[COUNT];
    if (!file) return 2;
    take(&buffers, sizeof buffers, file);
    if (buffers > MOST_BUFFERS) return 4;
    EACH(i, buffers) {
        take(&size[i], sizeof size[i], file);
        buffer[i] = aligned_alloc(64, (size[i] + 63) / 64 * 64);
        take(buffer[i], size[i], file);
    }
    EACH(i, COUNT) {
        const size_t start = offsetof(Task, stride);
        EACH(p, POINTERS) {
            int64_t place[2];
            take(place, sizeof place, file);
            ((char **)&task[i])[p] = buffer[place[0]] + place[1];
        }
        take((char *)&task[i] + start, sizeof(Task) - start, file);
    }
    fclose(file);
    EACH(i, COUNT) forward[i](&task[i]);
    for (int i = COUNT - 1; i >= 0; i--) backward[i](&task[i]);
    file = fopen(words[2], "wb");
    EACH(i, buffers) fwrite(buffer[i], 1, size[i], file);
    return fclose(file) ? 5 : 0;
}
