"""Settings, validated on construction.

Scope: frozen dataclasses that refuse bad values with the field, the value and the range. The process environment is
read in environment.py and nowhere else. Does not know what the settings are used for.
"""

from qlora_chat.settings.checks import SettingsError, adapter_name, is_loopback, one_of
from qlora_chat.settings.environment import (
    api_tokens,
    cache_folder,
    cpu_isa,
    data_file,
    engine_settings,
    gradio_folder,
    history_settings,
    hub_cache_folder,
    hub_is_offline,
    hub_token_is_set,
    log_settings,
    operator_token,
    outbox_file,
    page_token,
    quiet_libraries,
    receiver_settings,
    traces_endpoint,
    training_folder,
)
from qlora_chat.settings.model import (
    CPU_ISAS,
    DEFAULT_PROMPT_FORMAT,
    AdapterMode,
    BaseForm,
    CpuIsa,
    Device,
    EngineSettings,
    KVCacheDtype,
    ModelSettings,
    Precision,
)
from qlora_chat.settings.persistence import HistorySettings, LogSettings
from qlora_chat.settings.sampling import (
    LOGITS_PROCESSORS,
    MAX_STOP_LENGTH,
    MAX_STOP_TEXTS,
    PRESETS,
    SAMPLING_OPTIONS,
    SAMPLING_SETTINGS,
    SLIDERS,
    Preset,
    Sampling,
    SamplingSetting,
    check_stop_texts,
)
from qlora_chat.settings.server import DEFAULT_PORT, ReceiverSettings, ServeSettings, is_shared, operates_page
