// Schema of every op, and the Python module that registers the ops on import.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "cpu/simd.h"

STABLE_TORCH_LIBRARY(shfcas, library) {
  library.def(
      "kendall_counts(Tensor x, Tensor y, Tensor? offsets=None) -> "
      "(Tensor concordant, Tensor discordant, Tensor tied_x, Tensor tied_y, Tensor tied_both)");
  library.def("kendall_tau(Tensor x, Tensor y, str variant='b', Tensor? offsets=None) -> Tensor");
  library.def("kendall_distance(Tensor x, Tensor y, bool normalized=True, Tensor? offsets=None) -> Tensor");
  library.def("kendall_tau_matrix(Tensor x, str variant='b') -> Tensor");
  library.def("kendall_distance_matrix(Tensor x) -> Tensor");
  library.def(
      "kendall_statistics(Tensor x, Tensor y, Tensor? offsets=None) -> "
      "(Tensor concordant, Tensor discordant, Tensor tied_x, Tensor tied_y, Tensor tied_both, "
      "Tensor classes, Tensor triples_x, Tensor triples_y)");
  library.def(
      "kendall_test(Tensor x, Tensor y, str variant='b', str alternative='two-sided', str method='auto', "
      "Tensor? offsets=None) -> (Tensor tau, Tensor pvalue)");
  library.def("pacs(Tensor rewards, Tensor logprobs, Tensor? offsets=None) -> Tensor");
  library.def(
      "pacs_backward(Tensor gradient, Tensor rewards, Tensor logprobs, Tensor? offsets=None) -> "
      "(Tensor rewards_gradient, Tensor logprobs_gradient)");
  library.def(
      "conflict_scores(Tensor rewards, Tensor logprobs, Tensor? offsets=None) -> "
      "(Tensor pacs, Tensor mean_abs_pacs, Tensor kendall_distance, Tensor kendall_tau_b, Tensor "
      "degenerate)");
  library.def(
      "token_statistics(Tensor logits, Tensor labels, Tensor? mask=None, float temperature=1.0, "
      "bool entropy=False) -> (Tensor sums, Tensor logprobs, Tensor entropy, Tensor normalizer)");
  library.def(
      "token_statistics_backward(Tensor gradient, Tensor? entropy_gradient, Tensor logits, Tensor labels, "
      "Tensor? mask, Tensor? entropy, Tensor normalizer, float temperature=1.0) -> Tensor");
  library.def("sequence_logprobs(Tensor logits, Tensor labels, Tensor? mask=None) -> Tensor");
  library.def(
      "token_logprobs(Tensor logits, Tensor labels, Tensor? mask=None, float temperature=1.0, "
      "bool entropy=False) -> (Tensor logprobs, Tensor entropy)");
  library.def(
      "linear_token_statistics(Tensor hidden, Tensor weight, Tensor labels, Tensor? bias=None, "
      "float temperature=1.0, bool entropy=False) -> (Tensor logprobs, Tensor entropy, Tensor normalizer)");
  library.def(
      "linear_token_statistics_backward(Tensor gradient, Tensor? entropy_gradient, Tensor hidden, "
      "Tensor weight, Tensor labels, Tensor? bias, Tensor? entropy, Tensor normalizer, float temperature, "
      "bool[3] wanted) -> (Tensor hidden_gradient, Tensor weight_gradient, Tensor bias_gradient)");
  library.def(
      "linear_token_logprobs(Tensor hidden, Tensor weight, Tensor labels, Tensor? bias=None, "
      "float temperature=1.0, bool entropy=False) -> (Tensor logprobs, Tensor entropy)");
}

namespace {

pybind11::dict build_facts() {
  pybind11::dict facts;
  facts["torch"] = SHFCAS_TORCH_VERSION;
  facts["cuda"] = SHFCAS_CUDA_VERSION;
  facts["cuda_archs"] = SHFCAS_CUDA_ARCHS;
  facts["compiler"] = __VERSION__;
  facts["simd"] = shfcas::simd_level_name();
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Registers torch.ops.shfcas and knows how it was built.";
  module.def("build_facts", &build_facts,
             "What the library was compiled with, and the instruction set it chose.");
}
