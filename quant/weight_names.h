// quant/weight_names.h - what a module is, by its name alone, where the names of the families agree.
#pragma once

#include <string_view>

namespace gpuledger {

// "encoder.layer.0.output.dense" -> "dense".
std::string_view LastComponent(std::string_view module);
// "lm_head.dense" -> "lm_head".
std::string_view FirstComponent(std::string_view module);
std::string_view ParentModule(std::string_view module);  // empty for a module at the top

bool NamesEmbedding(std::string_view module);
bool NamesNorm(std::string_view module);
bool NamesOutputHead(std::string_view module);    // what transformers calls the output embedding: of language models
bool NamesTaskHead(std::string_view module);      // of classifiers and question answering
bool NamesRouter(std::string_view module);        // what chooses a mixture's experts
bool NamesConv1D(std::string_view module);        // GPT-2's transposed linears
bool NamesExpert(std::string_view module);        // inside one of a mixture's numbered experts
bool NamesFusedExperts(std::string_view tensor);  // a parameter that holds all of a mixture's experts

}  // namespace gpuledger
