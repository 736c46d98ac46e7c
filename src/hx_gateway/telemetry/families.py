"""Every metric family by name: what it is, its labels, its buckets, and how the numbers of several workers become one."""

from __future__ import annotations

from typing import NamedTuple

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets for response times, times to the first token and waits, in seconds."""
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the buckets for the gateway's own share of a response time, in seconds."""
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
"""Upper bounds of the buckets for the time per token of an answer, in seconds."""
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)
"""Upper bounds of the buckets for tokens of a prompt or an answer, as OpenTelemetry's GenAI conventions have them."""


class Family(NamedTuple):
    """One metric family.

    Args:
        name: As Prometheus sees it, without ``_total``.
        kind: ``counter`` and ``sum`` (a gauge) are added up over workers; of ``max`` and ``min`` (gauges) one worker's is shown;
            ``histogram``.
        help: One sentence.
        labels: Names of its labels.
        bounds: Upper bounds of the buckets of a histogram.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_DEPLOYMENT = ("model", "endpoint")
_SERVED = ("route", "model")
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # Requests
        Family("hx_gateway_requests", "counter", "Requests that came to an end.", ("route", "target", "model", "endpoint", "status", "code")),
        Family("hx_gateway_errors", "counter", "Requests that ended in an error, and whose fault it was.", ("route", "code", "blame")),
        Family("hx_gateway_throttled", "counter", "Requests refused by a limit.", ("route", "code")),
        Family(
            "hx_gateway_tokens",
            "counter",
            "Tokens of the ledger: prompt, completion, and cached (of the prompt, by the engine); those of answers from the gateway's cache apart.",
            ("target", "model", "kind", "source"),
        ),
        Family("hx_gateway_cost", "counter", "What requests cost, in the operator's money.", ("target", "model", "endpoint")),
        Family(
            "hx_gateway_attempts",
            "counter",
            "Calls to model servers: how requests were distributed, and how the calls ended.",
            ("target", "model", "endpoint", "code"),
        ),
        Family("hx_gateway_in_flight", "sum", "Requests on their way through the proxy."),
        Family("hx_gateway_response_seconds", "histogram", "From the request received to the last byte handed on.", _SERVED, SECONDS),
        Family("hx_gateway_first_token_seconds", "histogram", "From the request received to the first byte of a stream.", _SERVED, SECONDS),
        Family(
            "hx_gateway_output_token_seconds",
            "histogram",
            "Of streams: from the first byte to the last, per token of the answer after the first.",
            _SERVED,
            TOKEN_SECONDS,
        ),
        Family(
            "hx_gateway_overhead_seconds", "histogram", "Response time of whole answers without the wait for the model server.", ("route",),
            OVERHEAD_SECONDS,
        ),
        # The same by OpenTelemetry's names
        Family("gen_ai_server_request_duration_seconds", "histogram", "Response time, by OpenTelemetry's name.", _GEN_AI, SECONDS),
        Family("gen_ai_server_time_to_first_token_seconds", "histogram", "Time to the first token of streams, by OpenTelemetry's name.", _GEN_AI, SECONDS),
        Family(
            "gen_ai_server_time_per_output_token_seconds", "histogram", "Time per token of streams, by OpenTelemetry's name.", _GEN_AI,
            TOKEN_SECONDS,
        ),
        Family(
            "gen_ai_client_token_usage", "histogram", "Tokens of prompts (input) and answers (output), by OpenTelemetry's name.",
            (*_GEN_AI, "gen_ai_token_type"), TOKENS,
        ),
        # Documents
        Family("hx_gateway_rag_requests", "counter", "Requests about documents, by what they asked for.", ("operation", "code")),
        Family("hx_gateway_rag_seconds", "histogram", "From a request about documents to its answer, embeddings included.", ("operation",), SECONDS),
        # Queue and limits
        Family("hx_gateway_queue_waiting", "sum", "Requests that wait for a place.", ("target",)),
        Family("hx_gateway_queue_wait_seconds", "histogram", "How long requests waited for a place that had to.", ("target",), SECONDS),
        Family("hx_gateway_limited", "counter", "Requests refused by a limit: of a key, or of the gateway itself.", ("scope", "limit")),
        Family("hx_gateway_limits_gateways", "max", "Gateways that share the limits of keys through Redis, when last asked."),
        Family("hx_gateway_redis_up", "min", "1 while Redis answers in time, else 0; absent where none is configured."),
        Family("hx_gateway_redis_losses", "counter", "How often Redis was lost: late, gone, or not understood."),
        # The fleet
        Family("hx_gateway_endpoint_up", "min", "1 if the last probe went well, else 0; absent before the first.", ("endpoint",)),
        Family("hx_gateway_endpoint_drained", "max", "1 while an endpoint is taken out of service by an administrator, else 0.", ("endpoint",)),
        Family("hx_gateway_endpoint_in_flight", "sum", "Calls under way at an endpoint.", ("endpoint",)),
        Family("hx_gateway_endpoint_breaker", "max", "An endpoint's breaker: 0 closed, 1 half-open, 2 open; of workers the worst.", ("endpoint",)),
        Family("hx_gateway_endpoint_limit", "max", "Most calls at once; absent for no limit.", ("endpoint",)),
        Family("hx_gateway_endpoint_probe_age_seconds", "max", "Time since an endpoint was last probed; absent before the first.", ("endpoint",)),
        Family("hx_gateway_endpoint_running", "max", "Requests that an engine says it works on, where it tells.", ("endpoint",)),
        Family("hx_gateway_endpoint_waiting", "max", "Requests in an engine's own queue, where it tells.", ("endpoint",)),
        Family("hx_gateway_endpoint_cache_used_ratio", "max", "Share of an engine's KV cache in use, where it tells.", ("endpoint",)),
        Family("hx_gateway_deployment_in_flight", "sum", "Calls under way for a model at an endpoint.", _DEPLOYMENT),
        Family("hx_gateway_deployment_breaker", "max", "Breaker of a model at an endpoint: 0 closed, 1 half-open, 2 open; of workers the worst.", _DEPLOYMENT),
        Family("hx_gateway_deployment_limit", "max", "Most calls at once; absent for no limit.", _DEPLOYMENT),
        Family("hx_gateway_deployment_minute_limit", "max", "Requests or tokens that it may have in a minute; absent for no limit.", (*_DEPLOYMENT, "unit")),
        Family("hx_gateway_deployment_minute_left", "min", "Requests or tokens that it may have at once now; absent without a limit of a minute.", (*_DEPLOYMENT, "unit")),
        Family("hx_gateway_available_ratio", "min", "Share of the deployments of a public name that can be used now, of those that are not drained; 0 without any.", ("target",)),
        Family("hx_gateway_model_loaded", "max", "1 while a model is in its server's memory, else 0; absent where servers keep theirs always.", _DEPLOYMENT),
        Family("hx_gateway_model_memory_bytes", "max", "Memory that a loaded model takes, where the server tells.", _DEPLOYMENT),
        Family("hx_gateway_model_loads", "counter", "Answers that had to wait until their model was loaded, where the server tells.", _DEPLOYMENT),
        Family("hx_gateway_model_load_seconds", "counter", "How long they waited for that, together.", _DEPLOYMENT),
        # Routing
        Family("hx_gateway_target_info", "max", "Always 1; kind and policy of a public name.", ("target", "kind", "policy")),
        Family(
            "hx_gateway_routing_term_seconds",
            "max",
            "What the router would reckon now for a request of 1,000 tokens: seconds of each term, times its weight.",
            ("target", "model", "endpoint", "term"),
        ),
        # Groups that learn
        Family("hx_gateway_learned_decisions", "counter", "Prompts of groups that learn, by the model that came first (empty where the policy decided) and by what decided: share, quality, term, order, explore.", ("group", "model", "rule")),
        Family("hx_gateway_learned_embeddings", "counter", "Prompts of groups that learn with embeddings, by what became of theirs: known, made in time, late, failed, or passed over while the model rests after that.", ("group", "outcome")),
        Family("hx_gateway_learned_artifact_info", "max", "Always 1; which artifact is champion or challenger of a group; an empty version was not trained.", ("group", "role", "version")),
        Family("hx_gateway_learned_judged", "max", "Judged answers that a group has learned from.", ("group",)),
        Family("hx_gateway_learned_trial", "max", "Judged answers in which champion and challenger are compared now.", ("group",)),
        Family("hx_gateway_learned_lead", "max", "By how much the challenger's mean squared error is smaller than the champion's in those; negative where it is larger.", ("group",)),
        Family("hx_gateway_learned_changes", "max", "Artifacts that were promoted, demoted or retired, of the latest hundred events.", ("group",)),
        Family("hx_gateway_feedback", "max", "Feedback on answers that this machine's housekeeper brought into the store, or left out.", ("result",)),
        # What is kept
        Family("hx_gateway_cache_requests", "counter", "Requests that may be answered from the cache: hit in memory, hit_redis, miss, or shared with another under way.", ("route", "result")),
        Family("hx_gateway_cache_bytes", "sum", "Memory that cached answers take."),
        Family("hx_gateway_cache_entries", "sum", "Cached answers and vectors in memory."),
        Family("hx_gateway_cache_evictions", "counter", "Cached answers and vectors that had to go for newer ones."),
        Family("hx_gateway_journal_records", "counter", "Usage records written to the journal."),
        Family("hx_gateway_journal_lost", "counter", "Usage records that could not be written: the disk or the journal is full."),
        Family("hx_gateway_journal_dead_lettered", "counter", "Usage records moved aside because the journal was full and the store away."),
        Family("hx_gateway_journal_discarded", "counter", "Segments of dead letters deleted because those were full, too."),
        Family("hx_gateway_journal_pending_bytes", "max", "Journal of all workers that is not in the store yet."),
        Family("hx_gateway_store_up", "min", "1 while the database can be used, else 0; absent while it was not needed."),
        Family("hx_gateway_housekeeper_up", "min", "1 while the housekeeper tells its state, else 0."),
        Family("hx_gateway_duty_failing", "max", "1 while a duty of the housekeeper fails, else 0.", ("duty",)),
        Family("hx_gateway_duty_success_timestamp_seconds", "max", "When a duty of the housekeeper last went well, in Unix time.", ("duty",)),
        Family("hx_gateway_vectors_open", "max", "1 where the store of vectors is open in a worker, else 0."),
        # The gateway itself
        Family("hx_gateway_info", "max", "Always 1; its label tells the version.", ("version",)),
        Family("hx_gateway_start_time_seconds", "min", "When the first of the running workers started, in Unix time."),
        Family("hx_gateway_ready", "min", "1 while requests are taken, 0 before start and while draining."),
        Family("hx_gateway_workers", "sum", "Workers that serve."),
        Family("hx_gateway_config_reload_ok", "min", "1 if the last reload of the configuration was taken into use, 0 if it was refused; absent before the first."),
        Family("hx_gateway_series_full", "max", "1 when there is no room for further series, so that new ones are counted as other."),
        Family("hx_gateway_log_lines", "counter", "Lines about requests: written, left out by the rule of sampling, or lost because the log is slow.", ("result",)),
        Family("hx_gateway_trace_spans", "counter", "Spans made, and those lost because the collector is slow or away.", ("result",)),
        Family("hx_gateway_worker_cpu_seconds", "counter", "Processor time of a worker.", ("worker",)),
        Family("hx_gateway_worker_memory_bytes", "sum", "Resident memory of a worker.", ("worker",)),
    )
}  # fmt: skip
"""Every family by its name."""
