// Serves an explainer that whence exported and torch compiled: no Python, no autograd, no whence.
//
//   explain explainer.pt2 input.pt relevance.pt [class]
//
// input.pt holds one tensor [N, ...] written by torch.save; the class is -1, the likeliest, if not given.

#include <torch/torch.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>
#include <iterator>

static torch::Tensor read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "no file ", path);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return torch::pickle_load(bytes).toTensor();
}

static void write(const torch::Tensor& tensor, const char* path) {
  const std::vector<char> bytes = torch::pickle_save(tensor);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

static int explain(int argc, char** argv) {
  TORCH_CHECK(std::ifstream(argv[1]), "no file ", argv[1]);
  const c10::InferenceMode no_autograd;
  torch::inductor::AOTIModelPackageLoader explainer(argv[1]);
  const torch::Tensor x = read(argv[2]);
  const torch::Tensor target = torch::full({x.size(0)}, argc > 4 ? std::stoll(argv[4]) : -1, torch::kLong);

  // as the exported program names them: output, explained, relevance, relevance_sum, absorbed, holds
  const std::vector<torch::Tensor> found = explainer.run({x, target});
  TORCH_CHECK(found.size() == 6, "this program reads explainers by LRP of a class that is asked for, and no layers");
  if (!found.back().item<bool>()) {
    std::cerr << "the figures do not hold: numbers that are not finite, a class that is none, or sums that miss the output\n";
    return 1;
  }
  for (int64_t n = 0; n < x.size(0); ++n) {
    std::cout << "class " << found[1][n].item<int64_t>() << ": output " << found[0][n].item<float>() << " = relevance "
              << found[3][n].item<float>() << " + absorbed " << found[4][n].item<float>() << "\n";
  }
  write(found[2], argv[3]);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "explain explainer.pt2 input.pt relevance.pt [class]\n";
    return 2;
  }
  try {
    return explain(argc, argv);
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
