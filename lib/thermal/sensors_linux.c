/* SPDX-License-Identifier: Apache-2.0 */
/* sensors_linux.c - temperature (thermal zones and hwmon), throttling counters, power supply
 * and RAPL energy as files under /sys/class and /sys/devices, below a root that tests set.
 * Called by gate.c. Files are opened for each reading: a device may come and go. */
#define _POSIX_C_SOURCE 200809L

#include "thermal/bxn_thermal.h"

#if defined(__linux__)

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The first line of a small file, without its newline; false when it cannot be read. */
static bool read_line(const char *path, char *line, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, line, capacity - 1);
    close(fd);
    if (n < 0)
        return false;
    line[n] = '\0';
    line[strcspn(line, "\n")] = '\0';
    bxn_sanitise(line);
    return true;
}

/* A whole line that is one decimal number. */
static bool read_number(const char *path, int64_t *out)
{
    char line[64];
    if (!read_line(path, line, sizeof line))
        return false;
    const char *at = line;
    bool negative = *at == '-';
    at += negative;
    int64_t value = 0;
    if (*at == '\0')
        return false;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *at - '0', &value))
            return false;
    if (*at != '\0')
        return false;
    *out = negative ? -value : value;
    return true;
}

/* directory/name; false when it does not fit. */
static bool join(char *out, size_t capacity, const char *directory, const char *name)
{
    int n = snprintf(out, capacity, "%s/%s", directory, name);
    return n > 0 && (size_t)n < capacity;
}

static bool child_line(const char *directory, const char *name, char *line, size_t capacity)
{
    char path[512];
    return join(path, sizeof path, directory, name) && read_line(path, line, capacity);
}

static bool child_number(const char *directory, const char *name, int64_t *out)
{
    char path[512];
    return join(path, sizeof path, directory, name) && read_number(path, out);
}

/* Entries of a directory whose name begins with `prefix`, in numeric-then-byte order, at most
 * MAX_ENTRIES; the order of readdir is no order. */
#define MAX_ENTRIES 64
typedef struct entries {
    char name[MAX_ENTRIES][64];
    uint32_t count;
} entries;

static bool before(const char *a, const char *b)
{
    size_t la = strlen(a), lb = strlen(b); /* "zone2" before "zone10" */
    return la != lb ? la < lb : strcmp(a, b) < 0;
}

static void list(const char *directory, const char *prefix, entries *out)
{
    out->count = 0;
    DIR *dir = opendir(directory);
    if (dir == NULL)
        return;
    for (struct dirent *e = readdir(dir); e != NULL && out->count < MAX_ENTRIES; e = readdir(dir)) {
        if (e->d_name[0] == '.' || strncmp(e->d_name, prefix, strlen(prefix)) != 0 || strlen(e->d_name) > 63)
            continue;
        uint32_t at = out->count++;
        while (at > 0 && before(e->d_name, out->name[at - 1])) {
            memcpy(out->name[at], out->name[at - 1], sizeof out->name[0]);
            at--;
        }
        memcpy(out->name[at], e->d_name, strlen(e->d_name) + 1);
    }
    closedir(dir);
}

/* ---- temperature -------------------------------------------------------------------------- */

/* How surely a sensor of this name tells the processor's temperature; 0: it does not. */
static int rank_of(const char *name)
{
    static const struct {
        const char *part;
        int rank;
    } known[] = {
        {"x86_pkg_temp", 100}, {"coretemp Package", 95}, {"k10temp Tdie", 95}, {"k10temp Tctl", 94},
        {"zenpower Tdie", 93},  {"zenpower Tctl", 92},    {"cpu-thermal", 90},  {"cpu_thermal", 90},
        {"cpu-", 88},           {"cpuss", 88},            {"soc-thermal", 85},  {"soc_thermal", 85},
        {"TCPU", 80},           {"coretemp", 70},         {"k10temp", 70},      {"cpu", 60},
        {"acpitz", 40},         {"acpi_thermal", 40},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strncmp(name, known[i].part, strlen(known[i].part)) == 0)
            return known[i].rank;
    return 0;
}

typedef void (*sensor_fn)(void *context, const char *name, const char *path);

/* Every temperature file of thermal zones and hwmon devices. */
static void each_temperature(const char *root, sensor_fn fn, void *context)
{
    char base[512], device[512], path[512], name[96];
    entries zones;
    if (join(base, sizeof base, root, "sys/class/thermal")) {
        list(base, "thermal_zone", &zones);
        for (uint32_t i = 0; i < zones.count; i++)
            if (join(device, sizeof device, base, zones.name[i]) && child_line(device, "type", name, 64) &&
                join(path, sizeof path, device, "temp"))
                fn(context, name, path);
    }
    if (!join(base, sizeof base, root, "sys/class/hwmon"))
        return;
    list(base, "hwmon", &zones);
    for (uint32_t i = 0; i < zones.count; i++) {
        char chip[40], label[40], file[80];
        entries inputs;
        if (!join(device, sizeof device, base, zones.name[i]) || !child_line(device, "name", chip, sizeof chip))
            continue;
        list(device, "temp", &inputs);
        for (uint32_t k = 0; k < inputs.count; k++) {
            char *tail = strstr(inputs.name[k], "_input");
            if (tail == NULL || tail[6] != '\0' || !join(path, sizeof path, device, inputs.name[k]))
                continue;
            *tail = '\0';
            snprintf(file, sizeof file, "%s_label", inputs.name[k]);
            if (!child_line(device, file, label, sizeof label))
                snprintf(label, sizeof label, "%.16s", inputs.name[k]);
            snprintf(name, sizeof name, "%s %s", chip, label);
            fn(context, name, path);
        }
    }
}

typedef struct choice {
    bxn_sensors *sensors;
    const char *wanted;
    int best;
} choice;

static void choose(void *context, const char *name, const char *path)
{
    choice *c = context;
    bxn_sensors *s = c->sensors;
    int rank = c->wanted != NULL ? strstr(name, c->wanted) != NULL : rank_of(name);
    int64_t value;
    if (rank == 0 || rank < c->best)
        return;
    if (c->wanted == NULL && (!read_number(path, &value) || value <= -40000 || value == 0 || value > 150000))
        return; /* a zone that is switched off says 0 or nonsense */
    if (rank > c->best)
        s->temperature_count = 0;
    c->best = rank;
    if (s->temperature_count == BXN_SENSOR_FILES)
        return;
    bxn_sensor_file *file = &s->temperature[s->temperature_count++];
    snprintf(file->path, sizeof file->path, "%s", path);
    snprintf(file->name, sizeof file->name, "%s", name);
}

/* ---- the rest ------------------------------------------------------------------------------ */

static void find_throttle(bxn_sensors *s)
{
    char base[512], directory[512], path[512];
    entries cpus;
    int64_t value;
    if (!join(base, sizeof base, s->root, "sys/devices/system/cpu"))
        return;
    list(base, "cpu", &cpus);
    for (uint32_t i = 0; i < cpus.count && s->throttle_count < BXN_SENSOR_FILES; i++) {
        if (cpus.name[i][3] < '0' || cpus.name[i][3] > '9' || !join(directory, sizeof directory, base, cpus.name[i]))
            continue;
        for (int kind = 0; kind < 2 && s->throttle_count < BXN_SENSOR_FILES; kind++) {
            if (!join(path, sizeof path, directory,
                      kind == 0 ? "thermal_throttle/package_throttle_count" : "thermal_throttle/core_throttle_count") ||
                !read_number(path, &value))
                continue;
            bxn_sensor_file *file = &s->throttle[s->throttle_count++];
            snprintf(file->path, sizeof file->path, "%s", path);
        }
    }
}

static void find_power(bxn_sensors *s)
{
    char base[512], device[512], type[64], scope[64];
    entries supplies;
    snprintf(s->power_source, sizeof s->power_source, "none (taken for mains)");
    if (!join(base, sizeof base, s->root, "sys/class/power_supply"))
        return;
    list(base, "", &supplies);
    for (uint32_t i = 0; i < supplies.count; i++) {
        if (!join(device, sizeof device, base, supplies.name[i]) || !child_line(device, "type", type, sizeof type))
            continue;
        if (child_line(device, "scope", scope, sizeof scope) && strcmp(scope, "Device") == 0)
            continue; /* a mouse's battery */
        if (strcmp(type, "Battery") == 0 && s->battery[0] == '\0') {
            snprintf(s->battery, sizeof s->battery, "%s", device);
            snprintf(s->power_source, sizeof s->power_source, "%s", supplies.name[i]);
        } else if ((strcmp(type, "Mains") == 0 || strcmp(type, "USB") == 0) && s->mains_count < BXN_SENSOR_FILES) {
            bxn_sensor_file *file = &s->mains[s->mains_count];
            s->mains_count += join(file->path, sizeof file->path, device, "online");
        }
    }
    if (s->battery[0] == '\0' && s->mains_count != 0)
        snprintf(s->power_source, sizeof s->power_source, "mains");
}

/* RAPL: all packages, and the memory domains that the packages do not contain. */
static void find_energy(bxn_sensors *s)
{
    char base[512], zone[512], name[64];
    entries zones;
    int64_t value, range;
    snprintf(s->energy_source, sizeof s->energy_source, "none");
    bool refused = false;
    if (join(base, sizeof base, s->root, "sys/class/powercap")) {
        list(base, "intel-rapl:", &zones);
        for (uint32_t i = 0; i < zones.count && s->energy_count < BXN_SENSOR_FILES; i++) {
            if (!join(zone, sizeof zone, base, zones.name[i]) || !child_line(zone, "name", name, sizeof name) ||
                (strncmp(name, "package", 7) != 0 && strcmp(name, "dram") != 0))
                continue;
            if (!child_number(zone, "energy_uj", &value) || value < 0) {
                refused = true;
                continue;
            }
            bxn_sensor_file *file = &s->energy[s->energy_count];
            if (!join(file->path, sizeof file->path, zone, "energy_uj"))
                continue;
            if (!child_number(zone, "max_energy_range_uj", &range) || range <= 0)
                range = 0;
            s->energy_counter[s->energy_count].range = (uint64_t)range;
            bxn_counter_add(&s->energy_counter[s->energy_count++], (uint64_t)value);
            size_t used = s->energy_count == 1 ? 0 : strlen(s->energy_source);
            snprintf(s->energy_source + used, sizeof s->energy_source - used, "%s%s",
                     s->energy_count == 1 ? "RAPL " : " + ", name);
        }
    }
    if (s->energy_count == 0 && s->battery[0] != '\0' &&
        (child_number(s->battery, "energy_now", &value) ||
         (child_number(s->battery, "charge_now", &value) && child_number(s->battery, "voltage_now", &value)))) {
        s->battery_energy = true;
        snprintf(s->energy_source, sizeof s->energy_source, "battery (whole machine, while it discharges)");
    } else if (s->energy_count == 0 && refused) {
        snprintf(s->energy_source, sizeof s->energy_source, "none (RAPL is not readable by this user)");
    }
}

bitaxon_status bxn_sensors_open(bxn_sensors *s, const char *root, const char *wanted, bitaxon_error *error)
{
    memset(s, 0, sizeof *s);
    if (root != NULL && strlen(root) >= sizeof s->root)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "root is %zu bytes long, allowed are %zu", strlen(root),
                        sizeof s->root - 1);
    snprintf(s->root, sizeof s->root, "%s", root != NULL ? root : "/");
    choice c = {s, wanted, wanted != NULL ? 1 : 0};
    each_temperature(s->root, choose, &c);
    if (wanted != NULL && s->temperature_count == 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "no temperature sensor's name contains \"%s\"", wanted);
    snprintf(s->temperature_source, sizeof s->temperature_source, "none");
    if (s->temperature_count == 1)
        snprintf(s->temperature_source, sizeof s->temperature_source, "%s", s->temperature[0].name);
    else if (s->temperature_count > 1)
        snprintf(s->temperature_source, sizeof s->temperature_source, "%s (highest of %u)", s->temperature[0].name,
                 s->temperature_count);
    find_throttle(s);
    find_power(s);
    find_energy(s);
    return BITAXON_OK;
}

#define MOST_NOW 10000000000 /* of a battery's micro-units: beyond ten thousand is nonsense */

static void read_power(bxn_sensors *s, bitaxon_reading *out)
{
    int64_t value;
    bool mains = false, mains_known = false;
    for (uint32_t i = 0; i < s->mains_count; i++) {
        if (!read_number(s->mains[i].path, &value))
            continue;
        mains_known = true;
        mains = mains || value > 0;
    }
    char state[64];
    bool battery = s->battery[0] != '\0' && child_line(s->battery, "status", state, sizeof state);
    bool discharging = battery && strcmp(state, "Discharging") == 0;
    if (battery || mains_known) {
        out->known |= BITAXON_READ_POWER;
        out->on_battery = discharging || (battery && mains_known && !mains);
    }
    if (battery && child_number(s->battery, "capacity", &value) && value >= 0 && value <= 100) {
        out->known |= BITAXON_READ_BATTERY;
        out->battery_percent = (uint32_t)value;
    }
    if (!s->battery_energy)
        return;
    /* Microwatt-hours, or microampere-hours times microvolts; what charging adds is not use. */
    int64_t volts;
    uint64_t left;
    if (child_number(s->battery, "energy_now", &value) && value >= 0 && value <= MOST_NOW)
        left = (uint64_t)value * 3600;
    else if (child_number(s->battery, "charge_now", &value) && child_number(s->battery, "voltage_now", &volts) &&
             value >= 0 && value <= MOST_NOW && volts >= 0 && volts <= MOST_NOW)
        left = (uint64_t)((double)value * (double)volts * 3600e-6);
    else
        return;
    bxn_counter *counter = &s->battery_counter;
    if (counter->begun && left < counter->last && out->on_battery)
        s->battery_uj += counter->last - left;
    counter->last = left;
    counter->begun = true;
    out->known |= BITAXON_READ_ENERGY;
    out->energy_uj = s->battery_uj;
}

void bxn_sensors_read(bxn_sensors *s, bitaxon_reading *out)
{
    int64_t value;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    for (uint32_t i = 0; i < s->temperature_count; i++) {
        if (!read_number(s->temperature[i].path, &value) || value < INT32_MIN || value > INT32_MAX)
            continue;
        if (!(out->known & BITAXON_READ_TEMPERATURE) || value > out->temperature_mc)
            out->temperature_mc = (int32_t)value;
        out->known |= BITAXON_READ_TEMPERATURE;
    }
    for (uint32_t i = 0; i < s->throttle_count; i++) {
        if (!read_number(s->throttle[i].path, &value) || value < 0)
            continue;
        if ((uint64_t)value > out->throttle_count)
            out->throttle_count = (uint64_t)value; /* cores of a package count the same event */
        out->known |= BITAXON_READ_THROTTLE;
    }
    read_power(s, out);
    uint64_t energy = 0;
    for (uint32_t i = 0; i < s->energy_count; i++) {
        if (read_number(s->energy[i].path, &value) && value >= 0)
            bxn_counter_add(&s->energy_counter[i], (uint64_t)value);
        energy += s->energy_counter[i].total;
    }
    if (s->energy_count != 0) {
        out->known |= BITAXON_READ_ENERGY;
        out->energy_uj = energy;
    }
}

/* ---- the list ------------------------------------------------------------------------------- */

typedef struct listing {
    const bxn_sensors *sensors;
    bool chosen; /* which half is being written */
    char *buffer;
    size_t capacity, need;
} listing;

static void add_line(void *context, const char *name, const char *path)
{
    listing *l = context;
    bool chosen = false;
    for (uint32_t i = 0; i < l->sensors->temperature_count; i++)
        chosen = chosen || strcmp(l->sensors->temperature[i].path, path) == 0;
    if (chosen != l->chosen)
        return;
    char line[768];
    int64_t value;
    int n = read_number(path, &value) ? snprintf(line, sizeof line, "%s\t%lld\t%s\n", name, (long long)value, path)
                                      : snprintf(line, sizeof line, "%s\t?\t%s\n", name, path);
    size_t bytes = n < 0 ? 0 : (size_t)n;
    if (l->buffer != NULL && l->need + bytes < l->capacity)
        memcpy(l->buffer + l->need, line, bytes + 1);
    l->need += bytes;
}

size_t bxn_sensors_list(const bxn_sensors *s, char *buffer, size_t capacity)
{
    listing l = {s, true, buffer, capacity, 0};
    if (buffer != NULL && capacity != 0)
        buffer[0] = '\0';
    each_temperature(s->root, add_line, &l);
    l.chosen = false;
    each_temperature(s->root, add_line, &l);
    return l.need + 1;
}
#endif
