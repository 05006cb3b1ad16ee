/* SPDX-License-Identifier: Apache-2.0 */
/* tree_fixture.h - a temporary folder of a test program in which sensors' files are made up: `tree` from set_up
 * to tear_down. Included by the tests of the thermal policy, after cmocka. */
#ifndef TREE_FIXTURE_H
#define TREE_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char tree[64];

static void put(const char *path, const char *text)
{
    char full[600];
    snprintf(full, sizeof full, "%s/%s", tree, path);
    for (char *slash = strchr(full + strlen(tree) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void clear_tree(void)
{
    char command[320];
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", tree, tree);
    assert_int_equal(system(command), 0);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(tree, sizeof tree, "/tmp/bitaxon-thermal-XXXXXX");
    return mkdtemp(tree) == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    char command[320];
    snprintf(command, sizeof command, "rm -rf '%s'", tree);
    return system(command);
}

#endif
