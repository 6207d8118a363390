# The rules are private to quant, so their test compiles them in: the library hides them.
set(quant ${PROJECT_SOURCE_DIR}/quant)
gpuledger_test(weight_rules_test LIBRARIES nlohmann_json::nlohmann_json absl::flat_hash_set
               SOURCES weight_rules_test.cc ${quant}/weight_rules.cc ${quant}/weight_names.cc ${quant}/families.cc
                       ${quant}/model_config.cc ${quant}/module_patterns.cc)
target_include_directories(weight_rules_test PRIVATE ${quant})
