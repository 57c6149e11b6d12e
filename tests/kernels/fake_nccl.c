/* A NCCL among the threads of one process, on host memory: the functions and numbers of nccl.h that the wrapper uses, written from that
 * header. A call returns once the others have made theirs; a send returns at once. Sums are in rank order, rounded at each addition. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 4, REMOTE_ERROR = 6, MOST = 8, STREAM = 77 };
enum { INT64 = 4, FLOAT = 7, BFLOAT16 = 9, SUM = 0, MAX = 2 };
typedef struct { char internal[128]; } UniqueId;
typedef struct Message { struct Message* next; size_t bytes; char data[]; } Message;
typedef struct Clique {
    struct Clique* next;
    UniqueId id;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int size, joined, entered, leaving;
    char* given[MOST];
    Message* sent[MOST][MOST];
} Clique;
typedef struct { Clique* clique; int rank, trouble; } Comm;

static pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;
static Clique* cliques;
static int made;
static char last[80];

static size_t width(int type) { return type < 2 ? 1 : type < INT64 || type == FLOAT ? 4 : type == INT64 ? 8 : 2; }
static float wide(uint16_t bits) { uint32_t word = (uint32_t)bits << 16; float value; memcpy(&value, &word, 4); return value; }
static uint16_t rounded(float value) { uint32_t word; memcpy(&word, &value, 4); return (word + 0x7FFF + (word >> 16 & 1)) >> 16; }
static int refused(const char* what, int number) { snprintf(last, sizeof last, "%s %d", what, number); return INVALID_ARGUMENT; }

static void add(char* total, const char* part, size_t count, int type, int op) {
    for (size_t i = 0; i < count; i++) {
        if (type == INT64) {
            int64_t *a = (int64_t*)total + i, b = ((const int64_t*)part)[i];
            *a = op == SUM ? *a + b : *a > b ? *a : b;
        } else if (type == FLOAT) {
            float *a = (float*)total + i, b = ((const float*)part)[i];
            *a = op == SUM ? *a + b : *a > b ? *a : b;
        } else {
            uint16_t *a = (uint16_t*)total + i, b = ((const uint16_t*)part)[i];
            *a = rounded(wide(*a) + wide(b));
        }
    }
}

/* Leaves what every rank gives, in rank order, in `every`. */
static void exchange(Comm* comm, const void* from, size_t bytes, char* every) {
    Clique* c = comm->clique;
    char* copy = malloc(bytes);
    memcpy(copy, from, bytes);
    pthread_mutex_lock(&c->mutex);
    while (c->leaving) pthread_cond_wait(&c->changed, &c->mutex);
    c->given[comm->rank] = copy;
    if (++c->entered == c->size) c->leaving = c->size;
    pthread_cond_broadcast(&c->changed);
    while (!c->leaving) pthread_cond_wait(&c->changed, &c->mutex);
    for (int rank = 0; rank < c->size; rank++) memcpy(every + rank * bytes, c->given[rank], bytes);
    if (--c->leaving == 0) {
        c->entered = 0;
        for (int rank = 0; rank < c->size; rank++) free(c->given[rank]);
    }
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

int ncclGetVersion(int* version) { *version = 23007; return SUCCESS; }
const char* ncclGetLastError(Comm* comm) { return last; }
int ncclGetUniqueId(UniqueId* id) {
    memset(id, 7, sizeof *id);
    pthread_mutex_lock(&all);
    memcpy(id->internal + 120, &made, 4);
    made++;
    pthread_mutex_unlock(&all);
    return SUCCESS;
}
int ncclCommInitRank(Comm** comm, int size, UniqueId id, int rank) {
    if (rank < 0 || rank >= size || size > MOST) return refused("invalid rank", rank);
    pthread_mutex_lock(&all);
    Clique* c = cliques;
    while (c && memcmp(&c->id, &id, sizeof id)) c = c->next;
    if (!c) {
        c = calloc(1, sizeof *c);
        c->id = id, c->size = size, c->next = cliques, cliques = c;
        pthread_mutex_init(&c->mutex, NULL);
        pthread_cond_init(&c->changed, NULL);
    }
    pthread_mutex_unlock(&all);
    pthread_mutex_lock(&c->mutex);
    c->joined++;
    pthread_cond_broadcast(&c->changed);
    while (c->joined < size) pthread_cond_wait(&c->changed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    *comm = calloc(1, sizeof **comm);
    (*comm)->clique = c, (*comm)->rank = rank;
    return SUCCESS;
}
int ncclCommGetAsyncError(Comm* comm, int* state) { *state = comm->trouble; return SUCCESS; }
void fake_lose_peer(Comm* comm) { comm->trouble = REMOTE_ERROR; strcpy(last, "a peer has closed its connection"); }

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Comm* comm, void* stream) {
    if ((uintptr_t)stream != STREAM) return refused("invalid stream", (int)(uintptr_t)stream);
    if ((type != INT64 && type != FLOAT && type != BFLOAT16) || (op != SUM && op != MAX)) return refused("invalid type", type);
    size_t bytes = count * width(type);
    char* every = malloc(bytes * comm->clique->size);
    exchange(comm, from, bytes, every);
    for (int rank = 1; rank < comm->clique->size; rank++) add(every, every + rank * bytes, count, type, op);
    memcpy(to, every, bytes);
    free(every);
    return SUCCESS;
}
int ncclAllGather(const void* from, void* to, size_t count, int type, Comm* comm, void* stream) {
    exchange(comm, from, count * width(type), to);
    return SUCCESS;
}
int ncclSend(const void* from, size_t count, int type, int peer, Comm* comm, void* stream) {
    Clique* c = comm->clique;
    if ((uintptr_t)stream != STREAM || peer < 0 || peer >= c->size) return refused("invalid peer", peer);
    Message* message = malloc(sizeof *message + count * width(type));
    message->next = NULL, message->bytes = count * width(type);
    memcpy(message->data, from, message->bytes);
    pthread_mutex_lock(&c->mutex);
    Message** end = &c->sent[comm->rank][peer];
    while (*end) end = &(*end)->next;
    *end = message;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    return SUCCESS;
}
int ncclRecv(void* to, size_t count, int type, int peer, Comm* comm, void* stream) {
    Clique* c = comm->clique;
    if ((uintptr_t)stream != STREAM || peer < 0 || peer >= c->size) return refused("invalid peer", peer);
    pthread_mutex_lock(&c->mutex);
    Message** first = &c->sent[peer][comm->rank];
    while (!*first) pthread_cond_wait(&c->changed, &c->mutex);
    Message* message = *first;
    *first = message->next;
    pthread_mutex_unlock(&c->mutex);
    if (message->bytes != count * width(type)) return refused("invalid count", (int)count);
    memcpy(to, message->data, message->bytes);
    free(message);
    return SUCCESS;
}
