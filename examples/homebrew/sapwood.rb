# A formula for a tap of your own. NOT TRIED: no Mac was at hand, and nothing is published yet, so it
# builds what `make wheel` has put into dist/ of this checkout.
#
#     make wheel
#     brew install --build-from-source ./examples/homebrew/sapwood.rb
#     brew services start sapwood
class Sapwood < Formula
  desc "Serves Gemma 4 with speculative decoding to many clients on one device"
  homepage "file://#{File.expand_path("../..", __dir__)}/README.md"
  url "file://#{File.expand_path("../../dist/sapwood-0.1.0.tar.gz", __dir__)}"
  license "Apache-2.0"

  depends_on arch: :arm64
  depends_on :macos
  depends_on "python@3.13"

  # What the daemon needs comes from the package index: mlx is made there for each macOS.
  def install
    python = Formula["python@3.13"].opt_bin/"python3.13"
    system python, "-m", "venv", libexec
    system libexec/"bin/pip", "install", "#{buildpath}[serve]"
    bin.install_symlink libexec/"bin/sapwood"
    generate_completions_from_executable(bin/"sapwood", "completion")
  end

  service do
    run [opt_bin/"sapwood", "serve"]
    keep_alive successful_exit: false
    process_type :interactive
    error_log_path var/"log/sapwood.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/sapwood --version")
    (testpath/"sapwood.toml").write "memory = \"8G\"\n"
    system bin/"sapwood", "config", "check", testpath/"sapwood.toml"
  end
end
