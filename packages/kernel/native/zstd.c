/*
 * zstd, for pages on slow links. A context belongs to the thread that made it. It is wrapped in an object that the
 * garbage collector frees. Only functions of the stable API are used, in one call for a whole batch.
 */
#include "common.h"

#include <zstd.h>

/* Marks the objects, so that one kind is never taken for the other. */
static const napi_type_tag compressor_tag = { 0x7066a0e17a737464, 0x636f6d7072657373 };
static const napi_type_tag decompressor_tag = { 0x7066a0e17a737464, 0x6465636f6d707273 };

static void free_compressor(napi_env env, void *context, void *hint)
{
	ZSTD_freeCCtx(context);
}

static void free_decompressor(napi_env env, void *context, void *hint)
{
	ZSTD_freeDCtx(context);
}

static napi_value context_object(napi_env env, void *context, napi_finalize free_it, const napi_type_tag *tag)
{
	napi_value object;

	napi_create_object(env, &object);
	napi_wrap(env, object, context, free_it, NULL, NULL);
	napi_type_tag_object(env, object, tag);
	return object;
}

static void *context_arg(napi_env env, napi_value value, const napi_type_tag *tag)
{
	bool matches = false;
	void *context;

	if (napi_check_object_type_tag(env, value, tag, &matches) == napi_ok && matches &&
	    napi_unwrap(env, value, &context) == napi_ok)
		return context;
	pf_throw_type(env, "expected a zstd context of this kind");
	return NULL;
}

/* (level) */
static napi_value zstd_create_compressor(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	ZSTD_CCtx *context;
	int level;

	if (!pf_args(env, info, 1, argv) || !pf_int(env, argv[0], &level))
		return NULL;
	context = ZSTD_createCCtx();
	if (context == NULL)
		return pf_throw(env, "ZSTD_createCCtx", ENOMEM, 0);
	/* zstd takes the nearest level that it has. */
	ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
	/* Without checksums, four damaged frames of five still decode, to other pages. */
	ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
	return context_object(env, context, free_compressor, &compressor_tag);
}

static napi_value zstd_create_decompressor(napi_env env, napi_callback_info info)
{
	ZSTD_DCtx *context = ZSTD_createDCtx();

	if (context == NULL)
		return pf_throw(env, "ZSTD_createDCtx", ENOMEM, 0);
	return context_object(env, context, free_decompressor, &decompressor_tag);
}

/* (compressor, from, to): makes one frame and returns its length in bytes, 0 when it would not fit */
static napi_value zstd_compress(napi_env env, napi_callback_info info)
{
	size_t from_bytes, to_bytes, written;
	napi_value argv[3];
	ZSTD_CCtx *context;
	void *from, *to;

	if (!pf_args(env, info, 3, argv))
		return NULL;
	context = context_arg(env, argv[0], &compressor_tag);
	if (context == NULL || !pf_bytes(env, argv[1], &from, &from_bytes) || !pf_bytes(env, argv[2], &to, &to_bytes))
		return NULL;
	written = ZSTD_compress2(context, to, to_bytes, from, from_bytes);
	/* The input is whole and the context sets only the options above, so a lack of room is the only possible error. */
	return pf_number(env, ZSTD_isError(written) ? 0 : (double)written);
}

/*
 * (decompressor, from, to): whether `from` is exactly one frame and fills `to` exactly. The claims of the frame are not
 * trusted. zstd decodes in one go into `to`, which serves as the window too. So neither the claimed window nor the
 * claimed size of the content makes it allocate anything, and it stops where `to` ends.
 */
static napi_value zstd_decompress(napi_env env, napi_callback_info info)
{
	size_t from_bytes, to_bytes;
	napi_value argv[3], result;
	ZSTD_DCtx *context;
	void *from, *to;
	bool is_right;

	if (!pf_args(env, info, 3, argv))
		return NULL;
	context = context_arg(env, argv[0], &decompressor_tag);
	if (context == NULL || !pf_bytes(env, argv[1], &from, &from_bytes) || !pf_bytes(env, argv[2], &to, &to_bytes))
		return NULL;
	/* Otherwise several frames, or skippable frames, would count as one. */
	is_right = ZSTD_findFrameCompressedSize(from, from_bytes) == from_bytes &&
		   ZSTD_decompressDCtx(context, to, to_bytes, from, from_bytes) == to_bytes;
	napi_get_boolean(env, is_right, &result);
	return result;
}

void init_zstd(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "createCompressor", zstd_create_compressor);
	pf_export(env, object, "createDecompressor", zstd_create_decompressor);
	pf_export(env, object, "compress", zstd_compress);
	pf_export(env, object, "decompress", zstd_decompress);
	pf_set(env, exports, "zstd", object);
}
