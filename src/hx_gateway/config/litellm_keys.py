"""What LiteLLM's keys mean to the gateway where no setting takes them: the level and one sentence, by section and name."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hx_gateway.config.shape import nearest

Rules = tuple[tuple[str, str, str], ...]
"""Level, sentence, and the names it holds for, with ``*`` for anything."""

_CLOUD = "names an account at a provider outside; the gateway serves model servers that speak OpenAI's or Ollama's dialect"
_PRICE = "prices other than by prompt, cached and completion token, second and request do not exist here"
_BUDGET = "budgets belong to keys: hx-gateway keys create --help"
_UPKEEP = "concerns LiteLLM's own process, tables or log; nothing of that kind is needed here"
_HOOK = "runs other software on requests; write a stage (docs: Architecture, Adding to it) where it is still needed"
_LOGGING = "sends requests elsewhere; the ledger keeps a record of each, and monitoring.otlp_endpoint sends traces"
_SIGN_IN = "other ways to sign in do not exist here; callers have API keys"
_ALERTS = "alerts come from Prometheus: hx-gateway monitoring writes the rules, and your Alertmanager sends them to chat, mail or a webhook"
_PLACES = "is decided for every server alike by how it answers (docs: Errors), not by the kind of error"
_ROUTERS = "routing by content is a learned group here (docs: Routing), not a model that routes"
_MEDIA = "images, audio, batches and files are not served by the gateway itself; gateway.default_upstream can forward their paths"
_FINE = "the gateway does so anyway"

TOP: Rules = (
    ("manual", _HOOK, "guardrails guardrail_list policies policy_attachments prompts"),
    ("unsupported", _MEDIA, "files_settings finetune_settings assistant_settings batch_settings"),
    ("unsupported", "tools and agents are the client's here", "mcp_servers mcp_tools mcp_semantic_tool_filter search_tools agents agent_list vector_store_registry"),
    ("approximate", _LOGGING, "callback_settings"),
    ("approximate", _UPKEEP, "worker_registry"),
)  # fmt: skip

PARAMS: Rules = (
    ("unsupported", _CLOUD, "aws_* azure_* vertex_* s3_* gcs_* watsonx_* anthropic_* openai_* bedrock_* tenant_id client_id client_secret region_name bucket_name use_xai_oauth"),
    ("approximate", "is not needed: OpenAI's dialect is the same in all versions", "api_version"),
    ("unsupported", _PRICE, "*_cost_per_* *_cost *_cost_* cost_per_second tiered_pricing regional_*"),
    ("unsupported", _BUDGET, "max_budget budget_duration default_api_key_tpm_limit default_api_key_rpm_limit itpm otpm"),
    ("unsupported", _ROUTERS, "auto_router_* complexity_router_* adaptive_router_* quality_router_*"),
    ("unsupported", _MEDIA, "vector_store_id milvus_* valkey_* max_file_size_mb"),
    ("unsupported", "clients cannot name the server or its key here", "configurable_clientside_auth_params"),
    ("unsupported", "an answer that no model gave is for tests: python -m hx_gateway.testing.backend", "mock_response mock_*"),
    ("unsupported", "requests are told apart by the tags they send, not by patterns of other headers: load_balancer.tag_filtering", "tag_regex"),
    ("approximate", "which fields a server cannot take is known by its dialect; what was left out is named in x-hx-params-dropped", "drop_params additional_drop_params allowed_openai_params modify_params"),
    ("approximate", "thinking is passed on in its own field, as the server gives it", "merge_reasoning_content_in_choices"),
    ("approximate", "streams that wait are kept alive by http.heartbeat_seconds", "keepalive_seconds allow_client_keepalive_override"),
    ("approximate", "the retry budget is one for all: load_balancer.max_attempts, each at another server", "max_retries num_retries retry_policy"),
    ("approximate", "a breaker is one for all: load_balancer.circuit_breaker_threshold and circuit_breaker_timeout", "cooldown_time allowed_fails"),
    ("approximate", "prompts go where they are cached (policy intelligent); no header is needed", "provider_affinity_header"),
    ("approximate", _FINE, "use_in_pass_through use_litellm_proxy use_chat_completions_api litellm_trace_id fireworks_forward_user_id stream caching"),
    ("unsupported", "is not set by the gateway: put it into the model server's own template", "hf_model_name roles initial_prompt_value final_prompt_value bos_token eos_token prompt_id prompt_* custom_prompt_dict"),
    ("unsupported", "extra body fields are the client's to send", "metadata guardrails timeout_by_service_tier stream_timeout_by_service_tier"),
)  # fmt: skip

INFO: Rules = (
    ("approximate", "deployments are named by endpoint and model, and those names stay; no id is needed", "id"),
    ("approximate", "prices are taken from the configuration alone; no table by model is looked up", "base_model"),
    ("approximate", "how much a model takes is asked of its server, and longer prompts are refused or sent on to fallbacks.<name>.context", "max_input_tokens max_tokens max_output_tokens"),
    ("approximate", "what a model can do is asked of its server", "supports_* supported_*"),
    ("approximate", "servers are probed every load_balancer.health_check_interval seconds, and no tokens are spent", "health_check_* disable_background_health_check background_health_check*"),
    ("unsupported", _PRICE, "*_cost_per_* *_cost *_cost_* tiered_pricing ptu_*"),
    ("unsupported", "who may use a model is set with the key: hx-gateway keys create --model", "team_id team_public_model_name blocked access_windows member_auto_router"),
    ("approximate", "is for people; a YAML comment can keep it", "description metadata tier litellm_provider created_at created_by updated_at updated_by db_model key version discoverable"),
    ("unsupported", "tags are filtered for all names or none: load_balancer.tag_filtering", "enable_tag_filtering allow_fail_open"),
    ("approximate", _FINE, "internal_router_model"),
)  # fmt: skip

ROUTER: Rules = (
    ("approximate", _PLACES, "retry_policy allowed_fails_policy model_group_retry_policy health_check_ignore_transient_errors"),
    ("approximate", "another server is tried at once; waits come from the server's own Retry-After", "retry_after"),
    ("approximate", "who stands in is asked once each, and never twice", "max_fallbacks"),
    ("unsupported", "what a model refuses to say is an answer like any other here", "content_policy_fallbacks"),
    ("approximate", _FINE, "enable_pre_call_checks enable_pre_call_check ignore_invalid_deployments enable_health_check_routing health_check_staleness_threshold background_health_check_model_groups enable_weighted_failover fallback_access_check client_ttl cache_kwargs router_general_settings set_verbose debug_level polling_interval"),
    ("approximate", "prompts and conversations go where they are cached, under the policy intelligent: load_balancer.algorithm", "optional_pre_call_checks deployment_affinity_ttl_seconds model_group_affinity_config"),
    ("unsupported", "tags are taken as they are sent, with no prefix", "tag_routing_prefix"),
    ("approximate", "how the policy weighs is set by policies.<name>.terms", "routing_strategy_args"),
    ("approximate", "names in Redis are the gateway's own; a number of a database goes to the end of storage.redis_url", "redis_db"),
    ("manual", "should be a list; each name has a policy of its own: models.<name>.policy and groups.<name>.policy", "routing_groups"),
    ("approximate", "the queue is fair between keys; a request asks for another place with the header x-hx-priority", "default_priority"),
    ("unsupported", _BUDGET, "provider_budget_config fallback_budget_check"),
    ("manual", _ALERTS, "alerting_config"),
    ("manual", _HOOK, "plugins guardrail_list"),
    ("unsupported", _ROUTERS, "auto_router_capability_limit"),
    ("unsupported", _MEDIA, "assistants_config search_tools"),
    ("approximate", "answers are cached for each model and key (cache.scope)", "caching_groups"),
)  # fmt: skip

GENERAL: Rules = (
    ("approximate", "the gateway keeps its pool by itself; the tables are its own, beside LiteLLM's", "database_connection_pool_limit database_connection_timeout database_connect_timeout database_socket_timeout database_max_idle_connection_lifetime database_extra_connection_params database_disable_prepared_statements database_type database_args"),
    ("exact", "not needed: a chat never fails because a store is down, and keys stay enforced from the last known state", "allow_requests_on_db_unavailable"),
    ("manual", "models kept in LiteLLM's database are not in this file; list them with its /model/info and add them under models", "store_model_in_db supported_db_objects"),
    ("manual", _ALERTS, "alerting alert_types alert_to_webhook_url alerting_args alerting_threshold spend_report_frequency"),
    ("manual", "runs Python of yours; write it as a stage or a provider (docs: Architecture, Adding to it)", "custom_auth custom_key_generate custom_sso custom_ui_sso_sign_in_handler plugins custom_key_update"),
    ("unsupported", _SIGN_IN, "enable_jwt_auth litellm_jwtauth enable_oauth2_auth enable_oauth2_proxy_auth oauth2_config_mappings allow_user_auth service_account_settings litellm_key_header_name custom_auth_run_common_checks password_policy_* disable_password_login_when_sso_enabled max_failed_login_* failed_login_* disable_env_credential_login allow_cli_sso_verification_uri_complete"),
    ("unsupported", "which routes and addresses may call is for the proxy or firewall in front; admin routes need an admin key", "allowed_routes admin_only_routes public_routes allowed_ips ui_access_mode control_plane_url"),
    ("manual", "name the proxies in front in http.trusted_proxies; of anybody else X-Forwarded-For and X-Forwarded-Proto are ignored", "use_x_forwarded_for trusted_proxy_ranges"),
    ("unsupported", "required fields are not checked", "enforced_params enforce_user_param reject_clientside_metadata_tags missing_session_id"),
    ("manual", "secrets come from the environment or from files (env:NAME, file:PATH); have the service manager fetch them", "key_management_system key_management_settings use_azure_key_vault use_google_kms"),
    ("manual", "other paths below /v1 go to gateway.default_upstream, all to one server", "pass_through_endpoints pass_through_request_timeout use_client_credentials_pass_through_routes enable_openai_websocket_passthrough"),
    ("approximate", "which end user a request is for is believed from ledger.end_user_keys, in the header ledger.end_user_header", "user_header_name user_header_mappings"),
    ("approximate", "requests are kept with ledger.bodies.enabled", "store_prompts_in_spend_logs spend_logs_metadata_fields"),
    ("approximate", "how long records stay is set by ledger.retention_days", "maximum_*_retention_* use_spend_logs_partitioning maximum_spend_logs_*"),
    ("unsupported", "headers of clients are not handed to model servers, but for traceparent", "forward_client_headers_to_llm_api forward_openai_org_id allow_client_side_credentials"),
    ("unsupported", _MEDIA, "image_generation_model moderation_model max_batch_* max_file_* allowed_file_extensions blocked_file_extensions transcribe_media_buckets responses_websocket_session_limit_seconds"),
    ("unsupported", "tools and agents are the client's here", "mcp_* user_mcp_* vector_store_deny_by_default search_tool_deny_by_default enable_claude_code_gateway claude_code_gateway_*"),
    ("approximate", "requests of a client that left are cancelled at the model server", "cancel_on_disconnect"),
    ("approximate", "whom a server that is down is shown to, and where: /models/status", "model_list_healthy_only health_check_details"),
    ("approximate", "waiting is bounded by queue.max_waiting and queue.max_wait_seconds", "max_in_flight_requests_per_worker max_queued_requests_per_worker admission_queue_timeout_seconds"),
    ("approximate", "a change of the file is taken over while the gateway runs", "proxy_config_reload_interval_seconds"),
    ("approximate", "limits are kept in memory when Redis is away, and go on being enforced", "fail_closed_rate_limit_enforcement coordination_redis"),
    ("manual", "budgets and teams belong to keys; make them with hx-gateway keys create", "default_team_disabled disable_auto_add_proxy_admin_to_teams apply_user_budget_to_team_keys disable_budget_reservation"),
    ("approximate", "the gateway never serves with a weak key, nor other machines without one", "dangerously_permit_weak_or_unset_master_key"),
    ("approximate", _FINE, "background_health_checks health_check_concurrency health_check_skip_disabled_background_models background_health_check_model_groups infer_model_from_keys include_call_id_in_error_body enforce_fallback_model_access disable_responses_id_security allow_unmanaged_response_ids"),
    ("approximate", _UPKEEP, "disable_* proxy_budget_* proxy_batch_* user_api_key_cache_* litellm_license otel scheduled_job_stagger spend_capture_rate_check enable_public_model_hub"),
    ("unsupported", "which addresses servers have is the operator's alone", "user_url_validation user_url_allowed_hosts provider_url_destination_allowed_hosts"),
)  # fmt: skip

LITELLM: Rules = (
    ("approximate", _LOGGING, "failure_callback service_callback service_callbacks input_callback audit_log_callbacks langfuse_* langsmith_* generic_logger_* *_callback_params datadog_* newrelic_params argilla_* logging log_raw_request_response standard_logging_payload_excluded_fields cold_storage_custom_logger"),
    ("approximate", "no prompt or answer is logged anywhere unless ledger.bodies.enabled is set; keys are never", "turn_off_message_logging redact_user_api_key_info redact_messages_in_exceptions disable_streaming_logging global_disable_no_log_param"),
    ("approximate", "metrics carry model, group, endpoint and outcome; who used how much is in the ledger", "prometheus_* custom_prometheus_* disable_end_user_cost_tracking* enable_end_user_cost_tracking* require_auth_for_metrics_endpoint extra_spend_tag_headers"),
    ("unsupported", _BUDGET, "max_budget budget_duration max_user_budget max_internal_user_budget internal_user_budget_duration default_internal_user_params default_team_params default_team_settings default_soft_budget max_end_user_budget* *_key_generate_params key_generation_settings priority_reservation* tag_budget_config max_ui_session_budget budget_* default_max_internal_user_budget default_key_max_budget_alert_emails"),
    ("unsupported", "what a model refuses to say is an answer like any other here", "content_policy_fallbacks"),
    ("approximate", _FINE, "set_verbose json_logs suppress_debug_info force_ipv4 modify_params enable_json_schema_validation request_correlation_in_logs include_cost_in_streaming_usage return_response_headers enable_preview_features forward_traceparent_to_llm_provider filter_invalid_headers"),
    ("unsupported", "certificates of servers are set at each: endpoints.<name>.tls_verify and tls_ca_file", "ssl_certificate ssl_security_level ssl_ecdh_curve"),
    ("manual", _HOOK, "guardrails pre_call_rules post_call_rules custom_provider_map prompts global_prompt_directory global_gitlab_config global_bitbucket_config banned_keywords_list blocked_user_list llm_guard_mode llamaguard_* presidio_* output_parse_pii openai_moderations_model_name google_moderation_confidence_threshold skip_system_message_in_guardrail skip_tool_message_in_guardrail"),
    ("unsupported", _CLOUD, "*_key *_api_key *_token vertex_* gdc_api_base api_key predibase_tenant_id email token enable_azure_ad_token_refresh"),
    ("unsupported", "tools and agents are the client's here", "mcp_* public_mcp_* public_agent_groups public_skills_index agent_search_* skill_search_*"),
    ("approximate", "prices are taken from the configuration alone", "model_cost_map_url cost_discount_config cost_margin_config block_requests_for_models_without_pricing"),
    ("approximate", "which models a key may see is set with the key", "public_model_groups* model_group_settings"),
    ("manual", "should be a mapping of names", "model_alias_map"),
    ("approximate", _UPKEEP, "disable_* default_redis_* default_in_memory_ttl store_audit_logs validate_end_user_id_in_db enable_* use_* aiohttp_* *_trust_env http2 user_url_* blog_posts_url *_url overwrite_user_with_key_hash safe_memory_mode key_alias_pattern sse_keepalive_ping_interval_seconds anthropic_* add_function_to_prompt log_* LITELLM_* num_retries_per_request expose_router_debug_in_errors provider_url_destination_allowed_hosts reasoning_auto_summary"),
    ("unsupported", _MEDIA, "vector_store_* require_managed_files logged_real_time_event_types"),
)  # fmt: skip

CACHE: Rules = (
    ("unsupported", "answers that are only alike are never given again; the same request is", "similarity_threshold *semantic* qdrant_* max_messages"),
    ("approximate", "cached answers are kept in the memory of the gateway, or in Redis where storage.redis_url names one", "s3_* gcs_* gcp_* azure_* disk_cache_dir"),
    ("approximate", "names in Redis are the gateway's own, apart from LiteLLM's", "namespace"),
    ("approximate", "one address of Redis, as storage.redis_url; a proxy for a cluster or for sentinels stands in front", "redis_startup_nodes service_name sentinel_* startup_nodes"),
    ("approximate", _FINE, "max_connections redis_flush_size ssl_* username default_in_memory_ttl default_in_redis_ttl socket_timeout"),
)  # fmt: skip


def rule(rules: Rules, key: str) -> tuple[str, str] | None:
    """Level and sentence for a key; None where LiteLLM documents no such key."""
    for level, sentence, names in rules:
        if any(fnmatchcase(key, name) for name in names.split()):
            return level, sentence
    return None


def known(rules: Rules, key: str, handled: tuple[str, ...]) -> str:
    """``; did you mean …?`` with the nearest key that LiteLLM documents."""
    return nearest(key, [*handled, *(name for _, _, names in rules for name in names.split() if "*" not in name)])
