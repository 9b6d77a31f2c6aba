/*
 * Readability of any descriptor on the event loop of the calling thread (also a worker thread's). It serves descriptors
 * that Node has no stream for, such as userfaultfd, pidfd and raw sockets.
 *
 * A poller lives until its uv handle is closed and its JavaScript object is collected. While open it keeps its own
 * object alive, so the collector can never meet an open handle. An environment that goes away (worker termination)
 * closes it through the cleanup hook.
 */
#include "common.h"

#include <stdlib.h>
#include <uv.h>

struct poller {
	uv_poll_t poll;
	napi_env env;
	napi_ref self, callback;
	napi_async_context context;
	napi_async_cleanup_hook_handle hook;
	bool open;
	int owners; /* the uv handle and the JavaScript object */
};

static void release(struct poller *poller)
{
	if (--poller->owners == 0)
		free(poller);
}

/* May run after the environment's last callback: must not use poller->env. */
static void on_closed(uv_handle_t *handle)
{
	struct poller *poller = handle->data;

	napi_remove_async_cleanup_hook(poller->hook);
	release(poller);
}

static void close_poller(struct poller *poller)
{
	if (!poller->open)
		return;
	poller->open = false;
	uv_poll_stop(&poller->poll);
	napi_async_destroy(poller->env, poller->context);
	napi_delete_reference(poller->env, poller->callback);
	napi_delete_reference(poller->env, poller->self);
	uv_close((uv_handle_t *)&poller->poll, on_closed);
}

static void on_cleanup(napi_async_cleanup_hook_handle hook, void *arg)
{
	/* A poller whose close is already on its way removes the hook itself, in on_closed. */
	close_poller(arg);
}

static void on_finalize(napi_env env, void *data, void *hint)
{
	release(data);
}

static void on_event(uv_poll_t *handle, int status, int events)
{
	struct poller *poller = handle->data;
	napi_env env = poller->env;
	napi_value callback, receiver, argv[2], result, error;
	napi_handle_scope scope;
	bool thrown;

	napi_open_handle_scope(env, &scope);
	napi_get_reference_value(env, poller->callback, &callback);
	napi_get_reference_value(env, poller->self, &receiver);
	napi_get_boolean(env, status == 0 && (events & (UV_READABLE | UV_DISCONNECT)) != 0, &argv[0]);
	argv[1] = pf_undefined(env);
	if (status < 0) {
		pf_throw(env, "poll", -status, 0);
		napi_get_and_clear_last_exception(env, &argv[1]);
	}
	napi_make_callback(env, poller->context, receiver, callback, 2, argv, &result);
	napi_is_exception_pending(env, &thrown);
	if (thrown) {
		napi_get_and_clear_last_exception(env, &error);
		napi_fatal_exception(env, error);
	}
	napi_close_handle_scope(env, scope);
}

static napi_value poll_open(napi_env env, napi_callback_info info)
{
	napi_value argv[2], external, name;
	napi_valuetype type;
	struct poller *poller;
	uv_loop_t *loop;
	int fd, err;

	if (!pf_args(env, info, 2, argv) || !pf_int(env, argv[0], &fd))
		return NULL;
	if (napi_typeof(env, argv[1], &type) != napi_ok || type != napi_function)
		return pf_throw_type(env, "Poller: expected a callback");
	if (napi_get_uv_event_loop(env, &loop) != napi_ok)
		return pf_throw(env, "napi_get_uv_event_loop", ENOTSUP, 0);
	poller = calloc(1, sizeof(*poller));
	if (poller == NULL)
		return pf_throw(env, "malloc", ENOMEM, 0);
	/* EEXIST: one loop polls a descriptor only once. EPERM: a regular file is always readable. */
	err = uv_poll_init(loop, &poller->poll, fd);
	if (err < 0) {
		free(poller);
		return pf_throw(env, "uv_poll_init", -err, 0);
	}
	poller->poll.data = poller;
	poller->env = env;
	poller->open = true;
	poller->owners = 2;
	napi_create_string_utf8(env, "pageferry.Poller", NAPI_AUTO_LENGTH, &name);
	napi_create_external(env, poller, on_finalize, NULL, &external);
	napi_create_reference(env, external, 1, &poller->self);
	napi_create_reference(env, argv[1], 1, &poller->callback);
	napi_async_init(env, external, name, &poller->context);
	napi_add_async_cleanup_hook(env, on_cleanup, poller, &poller->hook);
	uv_poll_start(&poller->poll, UV_READABLE | UV_DISCONNECT, on_event);
	return external;
}

static struct poller *poller_arg(napi_env env, napi_callback_info info)
{
	napi_value argv[1];
	void *poller = NULL;

	if (pf_args(env, info, 1, argv) && napi_get_value_external(env, argv[0], &poller) != napi_ok)
		pf_throw_type(env, "expected a poller");
	return poller;
}

static napi_value poll_close(napi_env env, napi_callback_info info)
{
	struct poller *poller = poller_arg(env, info);

	if (poller == NULL)
		return NULL;
	close_poller(poller);
	return pf_undefined(env);
}

static napi_value poll_pause(napi_env env, napi_callback_info info)
{
	struct poller *poller = poller_arg(env, info);

	if (poller == NULL)
		return NULL;
	if (poller->open)
		uv_poll_stop(&poller->poll);
	return pf_undefined(env);
}

static napi_value poll_resume(napi_env env, napi_callback_info info)
{
	struct poller *poller = poller_arg(env, info);

	if (poller == NULL)
		return NULL;
	if (poller->open)
		uv_poll_start(&poller->poll, UV_READABLE | UV_DISCONNECT, on_event);
	return pf_undefined(env);
}

void init_poll(napi_env env, napi_value exports)
{
	napi_value object;

	napi_create_object(env, &object);
	pf_export(env, object, "open", poll_open);
	pf_export(env, object, "close", poll_close);
	pf_export(env, object, "pause", poll_pause);
	pf_export(env, object, "resume", poll_resume);
	pf_set(env, exports, "poll", object);
}
