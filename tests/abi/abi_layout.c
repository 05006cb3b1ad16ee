/* SPDX-License-Identifier: Apache-2.0 */
/* abi_layout.c - the size of each public struct and the place of each of its members, in
 * literals, for 64-bit machines (x86-64 and AArch64 alike). Once released, a line of this
 * table never changes; members are added at the end of a struct together with new lines.
 * The members of a struct must follow each other without holes, so a member that is not
 * listed here, or padding without a name, is found too. The shared library must give the
 * same sizes by bitaxon_struct_size. Run by CTest; tests/abi/exports.sh checks that every
 * struct of the headers stands here. */
#include <stdio.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

typedef struct row {
    const char *type;
    const char *member; /* NULL: the struct itself */
    size_t expected;    /* size of the struct or offset of the member */
    size_t found;
    size_t size; /* of the member */
} row;

#define STRUCT(type, size) {#type, NULL, size, sizeof(type), 0},
#define MEMBER(type, member, offset) \
    {#type, #member, offset, offsetof(type, member), sizeof(((type *)0)->member)},

/* clang-format off */
static const row rows[] = {
    STRUCT(bitaxon_error, 256)
    MEMBER(bitaxon_error, struct_size, 0)
    MEMBER(bitaxon_error, code, 4)
    MEMBER(bitaxon_error, message, 8)
    STRUCT(bitaxon_progress, 32)
    MEMBER(bitaxon_progress, struct_size, 0)
    MEMBER(bitaxon_progress, stage, 4)
    MEMBER(bitaxon_progress, done, 8)
    MEMBER(bitaxon_progress, total, 16)
    MEMBER(bitaxon_progress, item, 24)
    STRUCT(bitaxon_cache_params, 32)
    MEMBER(bitaxon_cache_params, struct_size, 0)
    MEMBER(bitaxon_cache_params, kv_type, 4)
    MEMBER(bitaxon_cache_params, max_tokens, 8)
    MEMBER(bitaxon_cache_params, checkpoint_interval, 16)
    MEMBER(bitaxon_cache_params, checkpoint_max, 24)
    MEMBER(bitaxon_cache_params, reserved0, 28)
    STRUCT(bitaxon_tensor_report, 56)
    MEMBER(bitaxon_tensor_report, struct_size, 0)
    MEMBER(bitaxon_tensor_report, changed, 4)
    MEMBER(bitaxon_tensor_report, name, 8)
    MEMBER(bitaxon_tensor_report, format, 16)
    MEMBER(bitaxon_tensor_report, bytes_before, 24)
    MEMBER(bitaxon_tensor_report, bytes_after, 32)
    MEMBER(bitaxon_tensor_report, relative_rms, 40)
    MEMBER(bitaxon_tensor_report, max_error, 48)
    STRUCT(bitaxon_convert_params, 128)
    MEMBER(bitaxon_convert_params, struct_size, 0)
    MEMBER(bitaxon_convert_params, flags, 4)
    MEMBER(bitaxon_convert_params, host, 8)
    MEMBER(bitaxon_convert_params, input, 16)
    MEMBER(bitaxon_convert_params, output, 24)
    MEMBER(bitaxon_convert_params, format, 32)
    MEMBER(bitaxon_convert_params, embedding_format, 40)
    MEMBER(bitaxon_convert_params, group_size, 48)
    MEMBER(bitaxon_convert_params, reserved0, 52)
    MEMBER(bitaxon_convert_params, seed, 56)
    MEMBER(bitaxon_convert_params, tokenizer, 64)
    MEMBER(bitaxon_convert_params, config_json, 72)
    MEMBER(bitaxon_convert_params, progress, 80)
    MEMBER(bitaxon_convert_params, report, 88)
    MEMBER(bitaxon_convert_params, user, 96)
    MEMBER(bitaxon_convert_params, adapters, 104)
    MEMBER(bitaxon_convert_params, adapter_weights, 112)
    MEMBER(bitaxon_convert_params, adapter_count, 120)
    MEMBER(bitaxon_convert_params, adapter_scale, 124)
    STRUCT(bitaxon_adapter_params, 16)
    MEMBER(bitaxon_adapter_params, struct_size, 0)
    MEMBER(bitaxon_adapter_params, scale, 4)
    MEMBER(bitaxon_adapter_params, path, 8)
    STRUCT(bitaxon_adapter_info, 56)
    MEMBER(bitaxon_adapter_info, struct_size, 0)
    MEMBER(bitaxon_adapter_info, rank, 4)
    MEMBER(bitaxon_adapter_info, dora, 8)
    MEMBER(bitaxon_adapter_info, weights, 12)
    MEMBER(bitaxon_adapter_info, scale, 16)
    MEMBER(bitaxon_adapter_info, reserved0, 20)
    MEMBER(bitaxon_adapter_info, parameters, 24)
    MEMBER(bitaxon_adapter_info, bytes, 32)
    MEMBER(bitaxon_adapter_info, id, 40)
    STRUCT(bitaxon_host, 56)
    MEMBER(bitaxon_host, struct_size, 0)
    MEMBER(bitaxon_host, reserved0, 4)
    MEMBER(bitaxon_host, user, 8)
    MEMBER(bitaxon_host, alloc, 16)
    MEMBER(bitaxon_host, free, 24)
    MEMBER(bitaxon_host, log, 32)
    MEMBER(bitaxon_host, now_ns, 40)
    MEMBER(bitaxon_host, parallel_for, 48)
    STRUCT(bitaxon_model_params, 80)
    MEMBER(bitaxon_model_params, struct_size, 0)
    MEMBER(bitaxon_model_params, flags, 4)
    MEMBER(bitaxon_model_params, host, 8)
    MEMBER(bitaxon_model_params, path, 16)
    MEMBER(bitaxon_model_params, files, 24)
    MEMBER(bitaxon_model_params, file_count, 32)
    MEMBER(bitaxon_model_params, threads, 36)
    MEMBER(bitaxon_model_params, cpu_mask, 40)
    MEMBER(bitaxon_model_params, max_bytes, 48)
    MEMBER(bitaxon_model_params, progress, 56)
    MEMBER(bitaxon_model_params, progress_user, 64)
    MEMBER(bitaxon_model_params, accuracy, 72)
    MEMBER(bitaxon_model_params, reserved0, 76)
    STRUCT(bitaxon_estimate, 72)
    MEMBER(bitaxon_estimate, struct_size, 0)
    MEMBER(bitaxon_estimate, reserved0, 4)
    MEMBER(bitaxon_estimate, mapped_bytes, 8)
    MEMBER(bitaxon_estimate, model_bytes, 16)
    MEMBER(bitaxon_estimate, load_peak_bytes, 24)
    MEMBER(bitaxon_estimate, session_bytes, 32)
    MEMBER(bitaxon_estimate, cache_bytes, 40)
    MEMBER(bitaxon_estimate, checkpoint_bytes, 48)
    MEMBER(bitaxon_estimate, parameters, 56)
    MEMBER(bitaxon_estimate, active_parameters, 64)
    STRUCT(bitaxon_tensor_info, 80)
    MEMBER(bitaxon_tensor_info, struct_size, 0)
    MEMBER(bitaxon_tensor_info, rank, 4)
    MEMBER(bitaxon_tensor_info, name, 8)
    MEMBER(bitaxon_tensor_info, dtype, 16)
    MEMBER(bitaxon_tensor_info, format, 24)
    MEMBER(bitaxon_tensor_info, shape, 32)
    MEMBER(bitaxon_tensor_info, bytes, 64)
    MEMBER(bitaxon_tensor_info, mapped, 72)
    MEMBER(bitaxon_tensor_info, reserved0, 76)
    STRUCT(bitaxon_logit_bias, 8)
    MEMBER(bitaxon_logit_bias, token, 0)
    MEMBER(bitaxon_logit_bias, bias, 4)
    STRUCT(bitaxon_sampler_params, 48)
    MEMBER(bitaxon_sampler_params, struct_size, 0)
    MEMBER(bitaxon_sampler_params, top_k, 4)
    MEMBER(bitaxon_sampler_params, temperature, 8)
    MEMBER(bitaxon_sampler_params, top_p, 12)
    MEMBER(bitaxon_sampler_params, min_p, 16)
    MEMBER(bitaxon_sampler_params, repetition_penalty, 20)
    MEMBER(bitaxon_sampler_params, repetition_window, 24)
    MEMBER(bitaxon_sampler_params, bias_count, 28)
    MEMBER(bitaxon_sampler_params, seed, 32)
    MEMBER(bitaxon_sampler_params, bias, 40)
    STRUCT(bitaxon_session_params, 56)
    MEMBER(bitaxon_session_params, struct_size, 0)
    MEMBER(bitaxon_session_params, reserved0, 4)
    MEMBER(bitaxon_session_params, cache, 8)
    MEMBER(bitaxon_session_params, cache_params, 16)
    MEMBER(bitaxon_session_params, sampler, 24)
    MEMBER(bitaxon_session_params, progress, 32)
    MEMBER(bitaxon_session_params, progress_user, 40)
    MEMBER(bitaxon_session_params, thermal, 48)
    STRUCT(bitaxon_candidate, 8)
    MEMBER(bitaxon_candidate, token, 0)
    MEMBER(bitaxon_candidate, logprob, 4)
    STRUCT(bitaxon_generated, 40)
    MEMBER(bitaxon_generated, struct_size, 0)
    MEMBER(bitaxon_generated, token, 4)
    MEMBER(bitaxon_generated, text, 8)
    MEMBER(bitaxon_generated, text_bytes, 16)
    MEMBER(bitaxon_generated, logprob, 24)
    MEMBER(bitaxon_generated, top_count, 28)
    MEMBER(bitaxon_generated, top, 32)
    STRUCT(bitaxon_generate_params, 64)
    MEMBER(bitaxon_generate_params, struct_size, 0)
    MEMBER(bitaxon_generate_params, flags, 4)
    MEMBER(bitaxon_generate_params, max_tokens, 8)
    MEMBER(bitaxon_generate_params, stop, 16)
    MEMBER(bitaxon_generate_params, stop_count, 24)
    MEMBER(bitaxon_generate_params, eos_count, 28)
    MEMBER(bitaxon_generate_params, eos, 32)
    MEMBER(bitaxon_generate_params, top_logprobs, 40)
    MEMBER(bitaxon_generate_params, reserved0, 44)
    MEMBER(bitaxon_generate_params, on_token, 48)
    MEMBER(bitaxon_generate_params, user, 56)
    STRUCT(bitaxon_generate_result, 24)
    MEMBER(bitaxon_generate_result, struct_size, 0)
    MEMBER(bitaxon_generate_result, finish, 4)
    MEMBER(bitaxon_generate_result, tokens, 8)
    MEMBER(bitaxon_generate_result, stop_index, 16)
    MEMBER(bitaxon_generate_result, eos_token, 20)
    STRUCT(bitaxon_stats, 80)
    MEMBER(bitaxon_stats, struct_size, 0)
    MEMBER(bitaxon_stats, reserved0, 4)
    MEMBER(bitaxon_stats, prefill_tokens, 8)
    MEMBER(bitaxon_stats, prefill_ns, 16)
    MEMBER(bitaxon_stats, decode_tokens, 24)
    MEMBER(bitaxon_stats, decode_ns, 32)
    MEMBER(bitaxon_stats, replayed_tokens, 40)
    MEMBER(bitaxon_stats, replay_ns, 48)
    MEMBER(bitaxon_stats, first_token_ns, 56)
    MEMBER(bitaxon_stats, prefill_uj, 64)
    MEMBER(bitaxon_stats, decode_uj, 72)
    STRUCT(bitaxon_source, 48)
    MEMBER(bitaxon_source, struct_size, 0)
    MEMBER(bitaxon_source, reserved0, 4)
    MEMBER(bitaxon_source, user, 8)
    MEMBER(bitaxon_source, size, 16)
    MEMBER(bitaxon_source, read_at, 24)
    MEMBER(bitaxon_source, map, 32)
    MEMBER(bitaxon_source, close, 40)
    STRUCT(bitaxon_file, 16)
    MEMBER(bitaxon_file, name, 0)
    MEMBER(bitaxon_file, source, 8)
    STRUCT(bitaxon_text_stream, 16)
    MEMBER(bitaxon_text_stream, struct_size, 0)
    MEMBER(bitaxon_text_stream, pending_bytes, 4)
    MEMBER(bitaxon_text_stream, pending, 8)
    STRUCT(bitaxon_message, 32)
    MEMBER(bitaxon_message, struct_size, 0)
    MEMBER(bitaxon_message, reserved0, 4)
    MEMBER(bitaxon_message, role, 8)
    MEMBER(bitaxon_message, content, 16)
    MEMBER(bitaxon_message, content_bytes, 24)
    STRUCT(bitaxon_span, 32)
    MEMBER(bitaxon_span, begin, 0)
    MEMBER(bitaxon_span, content, 8)
    MEMBER(bitaxon_span, content_end, 16)
    MEMBER(bitaxon_span, end, 24)
    STRUCT(bitaxon_reading, 40)
    MEMBER(bitaxon_reading, struct_size, 0)
    MEMBER(bitaxon_reading, known, 4)
    MEMBER(bitaxon_reading, temperature_mc, 8)
    MEMBER(bitaxon_reading, pressure, 12)
    MEMBER(bitaxon_reading, throttle_count, 16)
    MEMBER(bitaxon_reading, energy_uj, 24)
    MEMBER(bitaxon_reading, on_battery, 32)
    MEMBER(bitaxon_reading, battery_percent, 36)
    STRUCT(bitaxon_thermal_params, 112)
    MEMBER(bitaxon_thermal_params, struct_size, 0)
    MEMBER(bitaxon_thermal_params, flags, 4)
    MEMBER(bitaxon_thermal_params, host, 8)
    MEMBER(bitaxon_thermal_params, warm_mc, 16)
    MEMBER(bitaxon_thermal_params, warm_leave_mc, 20)
    MEMBER(bitaxon_thermal_params, hot_mc, 24)
    MEMBER(bitaxon_thermal_params, hot_leave_mc, 28)
    MEMBER(bitaxon_thermal_params, critical_mc, 32)
    MEMBER(bitaxon_thermal_params, critical_leave_mc, 36)
    MEMBER(bitaxon_thermal_params, dwell_ms, 40)
    MEMBER(bitaxon_thermal_params, sample_ms, 44)
    MEMBER(bitaxon_thermal_params, stale_ms, 48)
    MEMBER(bitaxon_thermal_params, no_sensor, 52)
    MEMBER(bitaxon_thermal_params, duty_percent, 56)
    MEMBER(bitaxon_thermal_params, battery_floor, 60)
    MEMBER(bitaxon_thermal_params, max_tokens_per_second, 64)
    MEMBER(bitaxon_thermal_params, sensor, 72)
    MEMBER(bitaxon_thermal_params, root, 80)
    MEMBER(bitaxon_thermal_params, read, 88)
    MEMBER(bitaxon_thermal_params, sleep_ns, 96)
    MEMBER(bitaxon_thermal_params, user, 104)
    STRUCT(bitaxon_thermal_status, 128)
    MEMBER(bitaxon_thermal_status, struct_size, 0)
    MEMBER(bitaxon_thermal_status, known, 4)
    MEMBER(bitaxon_thermal_status, band, 8)
    MEMBER(bitaxon_thermal_status, action, 12)
    MEMBER(bitaxon_thermal_status, reason, 16)
    MEMBER(bitaxon_thermal_status, stale, 20)
    MEMBER(bitaxon_thermal_status, temperature_mc, 24)
    MEMBER(bitaxon_thermal_status, max_temperature_mc, 28)
    MEMBER(bitaxon_thermal_status, slope_mc_per_s, 32)
    MEMBER(bitaxon_thermal_status, on_battery, 36)
    MEMBER(bitaxon_thermal_status, battery_percent, 40)
    MEMBER(bitaxon_thermal_status, reserved0, 44)
    MEMBER(bitaxon_thermal_status, samples, 48)
    MEMBER(bitaxon_thermal_status, transitions, 56)
    MEMBER(bitaxon_thermal_status, throttle_events, 64)
    MEMBER(bitaxon_thermal_status, band_ns, 72)
    MEMBER(bitaxon_thermal_status, paused_ns, 104)
    MEMBER(bitaxon_thermal_status, rested_ns, 112)
    MEMBER(bitaxon_thermal_status, energy_uj, 120)
    STRUCT(bitaxon_thermal_point, 32)
    MEMBER(bitaxon_thermal_point, struct_size, 0)
    MEMBER(bitaxon_thermal_point, band, 4)
    MEMBER(bitaxon_thermal_point, time_ns, 8)
    MEMBER(bitaxon_thermal_point, temperature_mc, 16)
    MEMBER(bitaxon_thermal_point, action, 20)
    MEMBER(bitaxon_thermal_point, energy_uj, 24)
};
/* clang-format on */

int main(void)
{
    const size_t count = sizeof rows / sizeof rows[0];
    int failed = 0;

    if (sizeof(void *) != 8 || sizeof(size_t) != 8) {
        printf("SKIP layout: the table is for 64-bit machines\n");
        return 77;
    }
    for (size_t i = 0; i < count;) {
        const row *type = &rows[i];
        size_t end = 0;
        int bad = 0;

        if (type->found != type->expected) {
            printf("    sizeof(%s) is %zu, promised %zu\n", type->type, type->found, type->expected);
            bad = 1;
        }
        if (bitaxon_struct_size(type->type) != type->expected) {
            printf("    bitaxon_struct_size(\"%s\") gives %zu, promised %zu\n", type->type,
                   bitaxon_struct_size(type->type), type->expected);
            bad = 1;
        }
        for (i++; i < count && rows[i].member != NULL; i++) {
            if (rows[i].found != rows[i].expected) {
                printf("    %s.%s is at %zu, promised %zu\n", type->type, rows[i].member,
                       rows[i].found, rows[i].expected);
                bad = 1;
            } else if (rows[i].found != end) {
                printf("    %s: bytes %zu to %zu, before %s, are not listed\n", type->type, end,
                       rows[i].found, rows[i].member);
                bad = 1;
            }
            end = rows[i].found + rows[i].size;
        }
        if (end != type->found) {
            printf("    %s: bytes %zu to %zu are not listed\n", type->type, end, type->found);
            bad = 1;
        }
        if (bad)
            printf("FAIL layout/%s: the layout changed\n", type->type);
        else
            printf("PASS layout/%s\n", type->type);
        failed |= bad;
    }
    if (bitaxon_struct_size(NULL) != 0 || bitaxon_struct_size("bitaxon_nothing") != 0) {
        printf("FAIL layout/unknown: an unknown name has a size\n");
        failed = 1;
    }
    return failed;
}
