# SPDX-License-Identifier: Apache-2.0
# summary.awk - count the checks in CTest logs (LastTest.log): each cmocka case and each
# "PASS|FAIL|SKIP name: reason" line is one; a program that reports none counts as one.
# Prints every failed and skipped check, then "N passed, N failed, N skipped".
# Exits with 1 when anything failed. -v bad=1 tells that a command failed before.

# " (asan)" for a line that comes from asan.testlog; nothing for the plain build
function tag(name)
{
    name = FILENAME
    sub(/.*\//, "", name)
    sub(/\.testlog$/, "", name)
    return name ~ /^(main|gates|build|LastTest\.log)$/ ? "" : " (" name ")"
}

function close_test()
{
    if (test == "")
        return
    if (verdict == "failed" && own_failed == 0) {
        print "FAIL " test ": crashed, timed out or returned non-zero" last_tag
        failed++
    } else if (verdict == "passed" && own_passed + own_failed + own_skipped == 0) {
        passed++
    }
    test = ""
}

function failure(name, line)
{
    if ((FILENAME, test, name) in seen)
        return
    seen[FILENAME, test, name] = 1
    print line tag()
    failed++
    own_failed++
}

/^[0-9]+\/[0-9]+ Testing: / {
    close_test()
    test = $3
    last_tag = tag()
    verdict = ""
    own_passed = own_failed = own_skipped = 0
}
/^Command: ""$/ { verdict = "failed" } # not run: no such program
/^Test Passed\.|^Test Pass Reason:/ { if (verdict == "") verdict = "passed" }
/^Test Failed\.|^Test Fail Reason:/ { if (verdict == "") verdict = "failed" }
/^\[       OK \] / { passed++; own_passed++ }
/^\[  FAILED  \] [A-Za-z_]/ { failure($4, "FAIL " test "/" $4) }
/^\[  SKIPPED \] [A-Za-z_]/ {
    if (!explained && !((FILENAME, test, "s" $4) in seen)) {
        print "SKIP " test "/" $4 tag()
        skipped++
    }
    own_skipped++
    seen[FILENAME, test, "s" $4] = 1 # the case is named again at the end
    explained = 0
}
/^PASS / { passed++; own_passed++ }
/^FAIL / { failure($2, $0) }
/^SKIP / {
    if (index($0, ":") && !((FILENAME, test, $0) in seen)) {
        seen[FILENAME, test, $0] = 1
        print $0 tag()
        skipped++
        own_skipped++
        explained = 1 # the case may follow as [  SKIPPED ], or have gone on
    }
}
/^SKIP: / { print "SKIP " test "/" substr($0, 7) tag() } # counted by its own last line
/^FAILED: / { failure($0, "FAIL " test "/" substr($0, 9)) }
# A script that counts by itself ends with the same line as this one.
/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ && test != "" {
    passed += $1
    skipped += $5
    own_passed += $1
}
# checkkern: one line per kernel and tier
/^[a-z0-9_]+ +[a-z0-9]+ +ok +[0-9]+ cases/ { passed++; own_passed++ }
/^[a-z0-9]+: not on this processor$/ {
    sub(/:/, "", $1)
    print "SKIP " test "/" $1 ": not on this processor" tag()
    skipped++
    own_skipped++
}
/^\[ RUN      \]/ { explained = 0 }

END {
    close_test()
    if (bad && failed == 0) {
        print "FAIL run: a build or a test command failed, see above"
        failed++
    }
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit failed > 0
}
