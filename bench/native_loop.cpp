// The same simulations without Python: N mjData on a few threads, as fast as MuJoCo itself goes.
//
//   native_loop MODEL.mjb INPUT N THREADS FRAME_SKIP EPISODE TAPE STEPS TOGETHER OUTPUT
//
// INPUT holds doubles: the starts (N, nq + nv), then the controls of a tape (TAPE, N, nu) that is
// played again and again. Every environment is reset to its start after EPISODE steps, and copies
// qpos and qvel to an observation after each. TOGETHER = 1 makes the threads wait for each other
// after each step, as an agent needs it that acts on all observations; 0 lets each run through its
// share. OUTPUT receives the last observations. Prints: seconds of STEPS steps, calls of mj_step.

#include <mujoco/mujoco.h>

#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

namespace {

struct Plan {
  const mjModel* model;
  std::vector<double> starts, tape, observations;
  int n, threads, frame_skip, episode, tape_steps, steps;
  bool together;
};

void begin(const Plan& plan, mjData* data, int i) {
  const mjModel* m = plan.model;
  const double* start = &plan.starts[i * (m->nq + m->nv)];
  mj_resetData(m, data);
  mju_copy(data->qpos, start, m->nq);
  mju_copy(data->qvel, start + m->nq, m->nv);
  mj_forward(m, data);
}

void observe(Plan& plan, const mjData* data, int i) {
  const mjModel* m = plan.model;
  double* row = &plan.observations[i * (m->nq + m->nv)];
  mju_copy(row, data->qpos, m->nq);
  mju_copy(row + m->nq, data->qvel, m->nv);
}

// One step of environments [first, last); returns the calls of mj_step.
long advance(Plan& plan, std::vector<mjData*>& data, int first, int last, int t) {
  const mjModel* m = plan.model;
  const bool ends = (t + 1) % plan.episode == 0;
  long calls = 0;
  for (int i = first; i < last; i++) {
    mju_copy(data[i]->ctrl, &plan.tape[(size_t(t % plan.tape_steps) * plan.n + i) * m->nu], m->nu);
    for (int k = 0; k < plan.frame_skip; k++, calls++) mj_step(m, data[i]);
    if (ends) begin(plan, data[i], i);
    observe(plan, data[i], i);
  }
  return calls;
}

std::vector<double> read(std::ifstream& file, size_t count) {
  std::vector<double> values(count);
  file.read(reinterpret_cast<char*>(values.data()), count * sizeof(double));
  if (!file) std::fprintf(stderr, "native_loop: the input is too short\n"), std::exit(2);
  return values;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 11) return std::fprintf(stderr, "native_loop: wants 10 arguments\n"), 2;
  mjModel* model = mj_loadModel(argv[1], nullptr);
  if (!model) return std::fprintf(stderr, "native_loop: cannot load %s\n", argv[1]), 2;
  auto number = [&](int i) { return std::atoi(argv[i]); };
  Plan plan{model, {}, {}, {}, number(3), number(4), number(5), number(6), number(7), number(8),
            number(9) != 0};
  std::ifstream input(argv[2], std::ios::binary);
  plan.starts = read(input, size_t(plan.n) * (model->nq + model->nv));
  plan.tape = read(input, size_t(plan.tape_steps) * plan.n * model->nu);
  plan.observations.resize(plan.starts.size());

  std::vector<mjData*> data(plan.n);
  for (int i = 0; i < plan.n; i++) begin(plan, data[i] = mj_makeData(model), i);

  using Clock = std::chrono::steady_clock;
  Clock::time_point started;
  std::barrier ready(plan.threads, [&]() noexcept { started = Clock::now(); });
  std::barrier every_step(plan.threads);
  std::vector<long> calls(plan.threads);
  auto work = [&](int thread) {
    const int first = plan.n * thread / plan.threads, last = plan.n * (thread + 1) / plan.threads;
    ready.arrive_and_wait();
    long own = 0;
    for (int t = 0; t < plan.steps; t++) {
      own += advance(plan, data, first, last, t);
      if (plan.together) every_step.arrive_and_wait();
    }
    calls[thread] = own;
  };
  std::vector<std::thread> workers;
  for (int thread = 0; thread < plan.threads; thread++) workers.emplace_back(work, thread);
  for (auto& worker : workers) worker.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - started).count();

  long total = 0;
  for (long own : calls) total += own;
  std::ofstream output(argv[10], std::ios::binary);
  output.write(reinterpret_cast<char*>(plan.observations.data()),
               plan.observations.size() * sizeof(double));
  std::printf("%.9f %ld\n", seconds, total);
  for (mjData* d : data) mj_deleteData(d);
  mj_deleteModel(model);
}
