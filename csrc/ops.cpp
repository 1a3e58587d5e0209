// Schemas of the operators; the kernels register themselves per device.
//
//   features (N, C, H, W)    kernels (N, G*K*K, H, W)    offsets (N, G*2*s*s, H, W)
//   masks (N, G*K*K, s*H, s*W)                           out, grad (N, C, s*H, s*W)
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(dlu_mmdet, m) {
  m.def(
      "dlu(Tensor features, Tensor kernels, Tensor offsets, int kernel_size, "
      "int group_size, int scale_factor) -> Tensor");
  m.def(
      "dlu_backward_features(Tensor grad, Tensor features, Tensor kernels, "
      "Tensor offsets, int kernel_size, int group_size, int scale_factor) -> Tensor");
  m.def(
      "dlu_backward_kernels(Tensor grad, Tensor features, Tensor kernels, "
      "Tensor offsets, int kernel_size, int group_size, int scale_factor) "
      "-> (Tensor, Tensor)");
  m.def(
      "carafe(Tensor features, Tensor masks, int kernel_size, int group_size, "
      "int scale_factor) -> Tensor");
  m.def(
      "carafe_backward_features(Tensor grad, Tensor features, Tensor masks, "
      "int kernel_size, int group_size, int scale_factor) -> Tensor");
  m.def(
      "carafe_backward_masks(Tensor grad, Tensor features, Tensor masks, "
      "int kernel_size, int group_size, int scale_factor) -> Tensor");
}

// Importing dlu_mmdet._C registers the operators; the module itself is empty.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
