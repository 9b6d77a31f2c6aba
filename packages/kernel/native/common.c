#include "common.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

napi_value pf_throw(napi_env env, const char *syscall, int err, pid_t pid)
{
	napi_value code, message, error;
	char number[16], text[160];
	const char *name = strerrorname_np(err);

	if (name == NULL) {
		snprintf(number, sizeof(number), "E%d", err);
		name = number;
	}
	if (pid > 0)
		snprintf(text, sizeof(text), "%s failed with %s (pid %d)", syscall, name, (int)pid);
	else
		snprintf(text, sizeof(text), "%s failed with %s", syscall, name);
	napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &code);
	napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &message);
	napi_create_error(env, code, message, &error);
	pf_set_number(env, error, "errno", err);
	napi_create_string_utf8(env, syscall, NAPI_AUTO_LENGTH, &message);
	pf_set(env, error, "syscall", message);
	if (pid > 0)
		pf_set_number(env, error, "pid", pid);
	napi_throw(env, error);
	return NULL;
}

napi_value pf_throw_type(napi_env env, const char *message)
{
	napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", message);
	return NULL;
}

bool pf_args(napi_env env, napi_callback_info info, size_t want, napi_value *argv)
{
	size_t argc = want;

	if (napi_get_cb_info(env, info, &argc, argv, NULL, NULL) != napi_ok || argc < want) {
		pf_throw_type(env, "missing argument");
		return false;
	}
	return true;
}

bool pf_int(napi_env env, napi_value v, int *out)
{
	double d;

	if (!pf_double(env, v, &d))
		return false;
	if (d < INT_MIN || d > INT_MAX || d != floor(d)) {
		pf_throw_type(env, "expected a 32-bit integer");
		return false;
	}
	*out = (int)d;
	return true;
}

bool pf_double(napi_env env, napi_value v, double *out)
{
	if (napi_get_value_double(env, v, out) != napi_ok || !isfinite(*out)) {
		pf_throw_type(env, "expected a finite number");
		return false;
	}
	return true;
}

bool pf_u64(napi_env env, napi_value v, uint64_t *out)
{
	napi_valuetype type;
	bool lossless = false;
	double d;

	if (napi_typeof(env, v, &type) == napi_ok && type == napi_bigint) {
		if (napi_get_value_bigint_uint64(env, v, out, &lossless) == napi_ok && lossless)
			return true;
		pf_throw_type(env, "expected a BigInt from 0 to 2^64-1");
		return false;
	}
	if (!pf_double(env, v, &d))
		return false;
	/* Above 2^53 a number has already lost bits: such a value must come as a BigInt. */
	if (d < 0 || d > 9007199254740991.0 || d != floor(d)) {
		pf_throw_type(env, "expected a non-negative integer");
		return false;
	}
	*out = (uint64_t)d;
	return true;
}

bool pf_bool(napi_env env, napi_value v, bool *out)
{
	if (napi_get_value_bool(env, v, out) != napi_ok) {
		pf_throw_type(env, "expected a boolean");
		return false;
	}
	return true;
}

bool pf_string(napi_env env, napi_value v, char *out, size_t size)
{
	size_t length;

	if (napi_get_value_string_utf8(env, v, NULL, 0, &length) != napi_ok) {
		pf_throw_type(env, "expected a string");
		return false;
	}
	if (length >= size) {
		pf_throw_type(env, "string too long (ENAMETOOLONG)");
		return false;
	}
	napi_get_value_string_utf8(env, v, out, size, &length);
	return true;
}

static size_t element_size(napi_typedarray_type type)
{
	switch (type) {
	case napi_int8_array:
	case napi_uint8_array:
	case napi_uint8_clamped_array:
		return 1;
	case napi_int16_array:
	case napi_uint16_array:
		return 2;
	case napi_int32_array:
	case napi_uint32_array:
	case napi_float32_array:
		return 4;
	default:
		return 8;
	}
}

bool pf_bytes(napi_env env, napi_value v, void **data, size_t *length)
{
	napi_typedarray_type type;
	bool is_typed = false;

	if (napi_is_typedarray(env, v, &is_typed) != napi_ok || !is_typed ||
	    napi_get_typedarray_info(env, v, &type, length, data, NULL, NULL) != napi_ok) {
		pf_throw_type(env, "expected a typed array");
		return false;
	}
	*length *= element_size(type);
	return true;
}

bool pf_runs(napi_env env, napi_value table, napi_value count, struct pf_run **runs, size_t *nr, uint64_t *pages)
{
	void *data;
	size_t length;
	int want;

	if (!pf_bytes(env, table, &data, &length) || !pf_int(env, count, &want))
		return false;
	if (want < 0 || (size_t)want * sizeof(struct pf_run) > length) {
		pf_throw_type(env, "run table: fewer entries than promised");
		return false;
	}
	*runs = data;
	*nr = want;
	*pages = 0;
	for (int i = 0; i < want; i++) {
		/* 2^52 pages are the whole address space: the sum below cannot overflow. Also refuses NaN. */
		if (!((*runs)[i].first_page >= 0 && (*runs)[i].first_page < 0x1p52 &&
		      (*runs)[i].nr_pages >= 0 && (*runs)[i].nr_pages < 0x1p40)) {
			pf_throw_type(env, "run table: entry out of range");
			return false;
		}
		*pages += (uint64_t)(*runs)[i].nr_pages;
	}
	return true;
}

napi_value pf_number(napi_env env, double v)
{
	napi_value value;

	napi_create_double(env, v, &value);
	return value;
}

napi_value pf_bigint(napi_env env, uint64_t v)
{
	napi_value value;

	napi_create_bigint_uint64(env, v, &value);
	return value;
}

napi_value pf_undefined(napi_env env)
{
	napi_value value;

	napi_get_undefined(env, &value);
	return value;
}

napi_value pf_new_bytes(napi_env env, const void *data, size_t length)
{
	napi_value buffer, array;
	void *copy;

	if (napi_create_arraybuffer(env, length, &copy, &buffer) != napi_ok)
		return pf_throw(env, "malloc", ENOMEM, 0);
	if (length > 0)
		memcpy(copy, data, length);
	napi_create_typedarray(env, napi_uint8_array, length, buffer, 0, &array);
	return array;
}

void pf_set(napi_env env, napi_value object, const char *name, napi_value value)
{
	napi_set_named_property(env, object, name, value);
}

void pf_set_number(napi_env env, napi_value object, const char *name, double value)
{
	pf_set(env, object, name, pf_number(env, value));
}

void pf_export(napi_env env, napi_value exports, const char *name, napi_callback fn)
{
	napi_value value;

	napi_create_function(env, name, NAPI_AUTO_LENGTH, fn, NULL, &value);
	pf_set(env, exports, name, value);
}

int64_t pf_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}
