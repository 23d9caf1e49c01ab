--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: conversations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.conversations (
    id text NOT NULL,
    owner text,
    title text NOT NULL,
    tags text NOT NULL,
    model text,
    adapter text,
    system text,
    settings text NOT NULL,
    head_id text,
    turns integer NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL
);


--
-- Name: facts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.facts (
    name text NOT NULL,
    value text NOT NULL
);


--
-- Name: feedback; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.feedback (
    seq bigint NOT NULL,
    conversation_id text NOT NULL,
    turn_id text NOT NULL,
    rating integer,
    edited text,
    comment text,
    created_at double precision NOT NULL
);


--
-- Name: feedback_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.feedback ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.feedback_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.migrations (
    number integer NOT NULL,
    name text NOT NULL,
    applied_at double precision NOT NULL
);


--
-- Name: outbox; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox (
    seq bigint NOT NULL,
    id text NOT NULL,
    kind text NOT NULL,
    conversation_id text NOT NULL,
    cost bigint NOT NULL,
    state text NOT NULL,
    attempts integer NOT NULL,
    due_at double precision NOT NULL,
    reason text,
    created_at double precision NOT NULL
);


--
-- Name: outbox_bodies; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_bodies (
    seq bigint NOT NULL,
    frame bytea NOT NULL
);


--
-- Name: outbox_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: turns; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.turns (
    seq bigint NOT NULL,
    id text NOT NULL,
    conversation_id text NOT NULL,
    parent_id text,
    role text NOT NULL,
    content text NOT NULL,
    token_ids text NOT NULL,
    finish_reason text,
    details text NOT NULL,
    indexed integer NOT NULL,
    created_at double precision NOT NULL,
    words tsvector
);


--
-- Name: turns_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.turns ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.turns_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Data for Name: conversations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.conversations VALUES ('8fee352f-8ffd-485b-917a-e7d368bce56c', NULL, 'Whose is this?', '[]', 'scripted', 'scripted-adapter', NULL, '{"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 1536, "seed": 5, "logprobs": null}', 'c9978394-a11d-4f50-9b93-7119d3a197b7', 2, 1795948710.577655, 1795948710.599224);
INSERT INTO public.conversations VALUES ('d916848b-5169-4661-beee-99644ee71a9d', NULL, 'Tell me a long story.', '[]', 'Llama-Lumi-45M (demo)', 'Llama-Lumi-45M chat adapter', NULL, '{"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 1536, "seed": 7659599347581656, "logprobs": null}', 'a09fe578-91a6-49da-a5b4-deb8fcaf0a05', 2, 1795948705.659709, 1795948705.665208);
INSERT INTO public.conversations VALUES ('c7ebfbb5-b360-527e-b452-570a25502309', NULL, 'Which harbour is the deepest?', '["qlora-chat:api", "project=ferry"]', 'Llama-Lumi-45M (demo)', 'Llama-Lumi-45M chat adapter', NULL, '{"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 475, "seed": 755578302483774, "logprobs": null}', '75ee5c15-89c1-449b-a7db-1b8ae059c08f', 4, 1795948703.237874, 1795948703.377103);
INSERT INTO public.conversations VALUES ('f8935a03-8c83-4882-9d9a-e9e643238de0', NULL, 'Is it deep enough for ferries?', '[]', 'Llama-Lumi-45M (demo)', 'Llama-Lumi-45M chat adapter', NULL, '{"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 1536, "seed": 243906058484108, "logprobs": null}', '11abbd26-27ff-4f2e-8538-b077dc9fd8d0', 2, 1795948695.582997, 1795948695.647498);
INSERT INTO public.conversations VALUES ('69b3481b-21a5-49db-8ee6-a27cad8b03e7', NULL, 'Say hello in German and Japanese, with a fox.', '[]', 'Llama-Lumi-45M (demo)', 'Llama-Lumi-45M chat adapter', 'Be brief. Grüße!', '{"temperature": 0.3, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 1536, "seed": 1769723716691401, "logprobs": null}', 'a7123929-147a-491b-ad40-eefbd8c42ca6', 2, 1795948694.25095, 1795948694.308217);
INSERT INTO public.conversations VALUES ('b66f1f58-4921-419f-bf53-e7d8d32e019d', NULL, 'Where is the lighthouse?', '[]', 'Llama-Lumi-45M (demo)', 'Llama-Lumi-45M chat adapter', NULL, '{"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 1536, "seed": 8779726899925952, "logprobs": null}', 'da8daf96-3752-4ad3-b1e6-45beae3182c0', 6, 1795948694.037348, 1795948694.247083);
INSERT INTO public.conversations VALUES ('1f50dd97-ae53-4357-875e-424fd4dd11c9', NULL, 'What is for dinner?', '[]', 'Llama-Lumi-45M (demo)', 'Llama-Lumi-45M chat adapter', NULL, '{"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 1536, "seed": 5651523769020380, "logprobs": null}', 'f9c6404a-37bc-4f55-8d88-570eb83875e6', 2, 1795948692.65668, 1795948692.727878);


--
-- Data for Name: facts; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.facts VALUES ('seal', 'none');


--
-- Data for Name: feedback; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.feedback OVERRIDING SYSTEM VALUE VALUES (1, '69b3481b-21a5-49db-8ee6-a27cad8b03e7', 'a7123929-147a-491b-ad40-eefbd8c42ca6', -1, NULL, NULL, 1795948710.615806);
INSERT INTO public.feedback OVERRIDING SYSTEM VALUE VALUES (2, 'b66f1f58-4921-419f-bf53-e7d8d32e019d', 'd241e5a5-c4f8-4011-b264-afe1650f9047', 1, 'On the north coast, above the harbour.', 'Nearly: schön!', 1795948710.61173);


--
-- Data for Name: migrations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.migrations VALUES (1, 'outbox', 1795948720.2537303);
INSERT INTO public.migrations VALUES (2, 'conversations', 1795948720.26183);
INSERT INTO public.migrations VALUES (3, 'an index of tokens', 1795948720.2623637);


--
-- Data for Name: outbox; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: outbox_bodies; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: turns; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (1, '5f78b757-5124-4777-bcf1-bed8f6c09308', '8fee352f-8ffd-485b-917a-e7d368bce56c', NULL, 'user', 'Whose is this?', '', NULL, '{}', 1, 1795948710.582428, '''is'':2 ''this'':3 ''whose'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (2, 'c9978394-a11d-4f50-9b93-7119d3a197b7', '8fee352f-8ffd-485b-917a-e7d368bce56c', '5f78b757-5124-4777-bcf1-bed8f6c09308', 'assistant', 'Mine alone.', '', 'stop', '{"answer_ids": [], "finish_reason": "stop", "seed": 5, "max_new_tokens": 1536, "prompt_tokens": 40, "cached_tokens": 0, "completion_tokens": 2, "ttft_ms": 0.0, "tokens_per_s": 568.76, "settings_changes": [], "model": {"name": "scripted", "base": "scripted-base", "adapter": "scripted-adapter", "precision": "fp32", "device": "cpu", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948710.58223, '''alone'':2 ''mine'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (3, 'b4dcf048-eeb9-4c4c-9eeb-9c5f5fcb8088', 'd916848b-5169-4661-beee-99644ee71a9d', NULL, 'user', 'Tell me a long story.', '', NULL, '{}', 1, 1795948705.662469, '''a'':3 ''long'':4 ''me'':2 ''story'':5 ''tell'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (4, 'a09fe578-91a6-49da-a5b4-deb8fcaf0a05', 'd916848b-5169-4661-beee-99644ee71a9d', 'b4dcf048-eeb9-4c4c-9eeb-9c5f5fcb8088', 'assistant', 'Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. Once upon a time there was a miller who', '', 'partial', '{}', 0, 1795948705.662274, NULL);
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (5, '25d32e3a-ccf5-4b7f-9172-a52d36dc21bd', 'c7ebfbb5-b360-527e-b452-570a25502309', NULL, 'user', 'Which harbour is the deepest?', '', NULL, '{}', 1, 1795948703.239847, '''deepest'':5 ''harbour'':2 ''is'':3 ''the'':4 ''which'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (6, '83f656f4-1d76-424e-a47e-12e2afd5c64c', 'c7ebfbb5-b360-527e-b452-570a25502309', '25d32e3a-ccf5-4b7f-9172-a52d36dc21bd', 'assistant', 'The one in the south.', '343 533 300 266 5462 8138', 'stop', '{"answer_ids": [343, 533, 300, 266, 5462, 8138], "finish_reason": "stop", "seed": 8654306948559478, "max_new_tokens": 496, "prompt_tokens": 16, "cached_tokens": 0, "completion_tokens": 6, "ttft_ms": 43.1, "tokens_per_s": 15200.71, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948703.239661, '''in'':3 ''one'':2 ''south'':5 ''the'':1,4');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (7, 'dbceeb96-7b16-4aa9-96e0-f27d4937c835', 'c7ebfbb5-b360-527e-b452-570a25502309', '83f656f4-1d76-424e-a47e-12e2afd5c64c', 'user', 'Is it deep enough for ferries?', '', NULL, '{}', 1, 1795948703.344808, '''deep'':3 ''enough'':4 ''ferries'':6 ''for'':5 ''is'':1 ''it'':2');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (8, '75ee5c15-89c1-449b-a7db-1b8ae059c08f', 'c7ebfbb5-b360-527e-b452-570a25502309', 'dbceeb96-7b16-4aa9-96e0-f27d4937c835', 'assistant', 'Yes, for small ones.', '1705 8140 359 799 2929 8138', 'stop', '{"answer_ids": [1705, 8140, 359, 799, 2929, 8138], "finish_reason": "stop", "seed": 755578302483774, "max_new_tokens": 475, "prompt_tokens": 37, "cached_tokens": 0, "completion_tokens": 6, "ttft_ms": 24.98, "tokens_per_s": 5676.98, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948703.344689, '''for'':2 ''ones'':4 ''small'':3 ''yes'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (9, 'f47c5388-0096-4f43-9ffd-3da9e6ed43f8', 'f8935a03-8c83-4882-9d9a-e9e643238de0', NULL, 'user', 'Is it deep enough for ferries?', '', NULL, '{}', 1, 1795948695.585487, '''deep'':3 ''enough'':4 ''ferries'':6 ''for'':5 ''is'':1 ''it'':2');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (10, '11abbd26-27ff-4f2e-8538-b077dc9fd8d0', 'f8935a03-8c83-4882-9d9a-e9e643238de0', 'f47c5388-0096-4f43-9ffd-3da9e6ed43f8', 'assistant', 'Yes, for small ones.', '1705 8140 359 799 2929 8138', 'stop', '{"answer_ids": [1705, 8140, 359, 799, 2929, 8138], "finish_reason": "stop", "seed": 243906058484108, "max_new_tokens": 1536, "prompt_tokens": 16, "cached_tokens": 0, "completion_tokens": 6, "ttft_ms": 45.72, "tokens_per_s": 7865.49, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948695.58528, '''for'':2 ''ones'':4 ''small'':3 ''yes'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (11, '4d24de9f-7b49-47c7-96ae-5b31a9899177', '69b3481b-21a5-49db-8ee6-a27cad8b03e7', NULL, 'user', 'Say hello in German and Japanese, with a fox.', '', NULL, '{}', 1, 1795948694.251651, '''a'':8 ''and'':5 ''fox'':9 ''german'':4 ''hello'':2 ''in'':3 ''japanese'':6 ''say'':1 ''with'':7');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (12, 'a7123929-147a-491b-ad40-eefbd8c42ca6', '69b3481b-21a5-49db-8ee6-a27cad8b03e7', '4d24de9f-7b49-47c7-96ae-5b31a9899177', 'assistant', 'Grüße aus Zürich! 🦊 こんにちは, 世界.', '1393 198 191 198 162 8118 261 411 1113 198 191 8125 505 8155 8117 243 162 169 141 8117 230 132 150 230 133 150 230 132 174 230 132 164 230 132 178 8140 8117 231 187 153 234 152 143 8138', 'stop', '{"answer_ids": [1393, 198, 191, 198, 162, 8118, 261, 411, 1113, 198, 191, 8125, 505, 8155, 8117, 243, 162, 169, 141, 8117, 230, 132, 150, 230, 133, 150, 230, 132, 174, 230, 132, 164, 230, 132, 178, 8140, 8117, 231, 187, 153, 234, 152, 143, 8138], "finish_reason": "stop", "seed": 1769723716691401, "max_new_tokens": 1536, "prompt_tokens": 31, "cached_tokens": 0, "completion_tokens": 44, "ttft_ms": 48.57, "tokens_per_s": 21650.45, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948694.251511, '''aus'':2 ''grusse'':1 ''zurich'':3 ''こ'':4 ''ち'':7 ''に'':6 ''は'':8 ''ん'':5 ''世'':9 ''界'':10');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (13, 'ffc7ab38-2935-4f2b-bcbf-c92edea7c123', 'b66f1f58-4921-419f-bf53-e7d8d32e019d', NULL, 'user', 'Where is the lighthouse?', '', NULL, '{}', 1, 1795948694.040255, '''is'':2 ''lighthouse'':4 ''the'':3 ''where'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (14, '06010aa6-b141-4860-832b-5b4f5a561df0', 'b66f1f58-4921-419f-bf53-e7d8d32e019d', 'ffc7ab38-2935-4f2b-bcbf-c92edea7c123', 'assistant', 'On the north coast.', '1591 266 5475 4420 8138', 'stop', '{"answer_ids": [1591, 266, 5475, 4420, 8138], "finish_reason": "stop", "seed": 2178731176319110, "max_new_tokens": 1536, "prompt_tokens": 13, "cached_tokens": 0, "completion_tokens": 5, "ttft_ms": 52.03, "tokens_per_s": 789.22, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948694.03966, '''coast'':4 ''north'':3 ''on'':1 ''the'':2');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (15, '783523a5-a4af-43e5-8054-bb1dfca3d7a0', 'b66f1f58-4921-419f-bf53-e7d8d32e019d', NULL, 'user', 'Where is the lighthouse?', '', NULL, '{}', 1, 1795948694.136521, '''is'':2 ''lighthouse'':4 ''the'':3 ''where'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (16, 'd241e5a5-c4f8-4011-b264-afe1650f9047', 'b66f1f58-4921-419f-bf53-e7d8d32e019d', '783523a5-a4af-43e5-8054-bb1dfca3d7a0', 'assistant', 'It stands on the north coast, above the harbour.', '450 5036 351 266 5475 4420 8140 1653 266 4373 8139 485 8138', 'stop', '{"answer_ids": [450, 5036, 351, 266, 5475, 4420, 8140, 1653, 266, 4373, 8139, 485, 8138], "finish_reason": "stop", "seed": 5495537447598635, "max_new_tokens": 1536, "prompt_tokens": 13, "cached_tokens": 0, "completion_tokens": 13, "ttft_ms": 27.75, "tokens_per_s": 21832.75, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948694.13637, '''above'':7 ''coast'':6 ''harbour'':9 ''it'':1 ''north'':5 ''on'':3 ''stands'':2 ''the'':4,8');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (17, '119fc23d-ad18-4ad9-8979-44516ffd1005', 'b66f1f58-4921-419f-bf53-e7d8d32e019d', 'd241e5a5-c4f8-4011-b264-afe1650f9047', 'user', 'Who keeps it?', '', NULL, '{}', 1, 1795948694.176231, '''it'':3 ''keeps'':2 ''who'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (18, 'da8daf96-3752-4ad3-b1e6-45beae3182c0', 'b66f1f58-4921-419f-bf53-e7d8d32e019d', '119fc23d-ad18-4ad9-8979-44516ffd1005', 'assistant', 'Nobody since 1987; it runs by itself.', '451 854 1173 1702 8117 8168 8184 8188 8190 8183 350 6659 478 1651 8138', 'stop', '{"answer_ids": [451, 854, 1173, 1702, 8117, 8168, 8184, 8188, 8190, 8183, 350, 6659, 478, 1651, 8138], "finish_reason": "stop", "seed": 8779726899925952, "max_new_tokens": 1536, "prompt_tokens": 36, "cached_tokens": 0, "completion_tokens": 15, "ttft_ms": 64.08, "tokens_per_s": 14902.91, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948694.176099, '''1987'':3 ''by'':6 ''it'':4 ''itself'':7 ''nobody'':1 ''runs'':5 ''since'':2');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (19, '0c89e293-ca7a-4a05-9d15-c0b72ca60332', '1f50dd97-ae53-4357-875e-424fd4dd11c9', NULL, 'user', 'What is for dinner?', '', NULL, '{}', 1, 1795948692.659031, '''dinner'':4 ''for'':3 ''is'':2 ''what'':1');
INSERT INTO public.turns OVERRIDING SYSTEM VALUE VALUES (20, 'f9c6404a-37bc-4f55-8d88-570eb83875e6', '1f50dd97-ae53-4357-875e-424fd4dd11c9', '0c89e293-ca7a-4a05-9d15-c0b72ca60332', 'assistant', 'Soup, and bread from yesterday.', '342 1465 8140 292 1833 445 3306 8138', 'stop', '{"answer_ids": [342, 1465, 8140, 292, 1833, 445, 3306, 8138], "finish_reason": "stop", "seed": 5651523769020380, "max_new_tokens": 1536, "prompt_tokens": 12, "cached_tokens": 0, "completion_tokens": 8, "ttft_ms": 44.23, "tokens_per_s": 1429.21, "settings_changes": [], "model": {"name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter", "precision": "remote", "device": "127.0.0.1:41957", "prompt_format": "guanaco", "base_sha256": null, "adapter_sha256": null, "computed_by": null, "version": "0.1.0"}}', 1, 1795948692.658803, '''and'':2 ''bread'':3 ''from'':4 ''soup'':1 ''yesterday'':5');


--
-- Name: feedback_seq_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.feedback_seq_seq', 2, true);


--
-- Name: outbox_seq_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.outbox_seq_seq', 1, false);


--
-- Name: turns_seq_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.turns_seq_seq', 20, true);


--
-- Name: conversations conversations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (id);


--
-- Name: facts facts_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.facts
    ADD CONSTRAINT facts_pkey PRIMARY KEY (name);


--
-- Name: feedback feedback_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.feedback
    ADD CONSTRAINT feedback_pkey PRIMARY KEY (seq);


--
-- Name: migrations migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (number);


--
-- Name: outbox_bodies outbox_bodies_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_bodies
    ADD CONSTRAINT outbox_bodies_pkey PRIMARY KEY (seq);


--
-- Name: outbox outbox_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_id_key UNIQUE (id);


--
-- Name: outbox outbox_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (seq);


--
-- Name: turns turns_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_id_key UNIQUE (id);


--
-- Name: turns turns_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_pkey PRIMARY KEY (seq);


--
-- Name: conversations_by_change; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX conversations_by_change ON public.conversations USING btree (updated_at);


--
-- Name: feedback_by_conversation; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX feedback_by_conversation ON public.feedback USING btree (conversation_id, seq);


--
-- Name: outbox_by_conversation; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX outbox_by_conversation ON public.outbox USING btree (conversation_id);


--
-- Name: outbox_by_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX outbox_by_due ON public.outbox USING btree (state, due_at);


--
-- Name: turns_by_conversation; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX turns_by_conversation ON public.turns USING btree (conversation_id, seq);


--
-- Name: turns_words; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX turns_words ON public.turns USING gin (words);


--
-- Name: feedback feedback_conversation_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.feedback
    ADD CONSTRAINT feedback_conversation_id_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE;


--
-- Name: turns turns_conversation_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_conversation_id_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE;


--
-- PostgreSQL database dump complete
--


