// Speed of llama.cpp, through node-llama-cpp: one JSON request on standard input, one JSON reply on standard output.
// node llama_cpp.mjs < {"model": FILE, "threads": N, "prompts": [[id, ...], ...], "count": N, "sampling": {...} or {}}
// Prompts are answered together, one sequence each. Sampling is node-llama-cpp's; {} is greedy.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { text } from "node:stream/consumers";

const require = createRequire(process.env.NODE_LLAMA_CPP + "/package.json");
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const request = JSON.parse(await text(process.stdin));
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: request.threads });
const model = await llama.loadModel({ modelPath: request.model });

async function answers(prompts, count) {
    const context = await model.createContext({
        contextSize: 512, batchSize: 512, sequences: prompts.length, threads: request.threads,
    });
    const sequences = prompts.map(() => context.getSequence());
    const each = prompts.map(async (prompt, index) => {
        const tokens = [], times = [], began = performance.now();
        const { repeatPenalty, ...sampling } = request.sampling;
        const penalty = repeatPenalty ? { repeatPenalty: { punishTokens: () => [...prompt, ...tokens].slice(-64), penalty: repeatPenalty } } : {};
        for await (const token of sequences[index].evaluate(prompt, { temperature: 0, ...sampling, ...penalty, yieldEogToken: true })) {
            tokens.push(token);
            times.push(performance.now() - began);
            if (tokens.length === count) break;
        }
        return { tokens, first: times[0] / 1000, total: times.at(-1) / 1000 };
    });
    const done = await Promise.all(each);
    await context.dispose();
    return done;
}

await answers([request.prompts[0]], 20);
process.stdout.write(JSON.stringify(await answers(request.prompts, request.count)));
await llama.dispose();
process.exit(0);
