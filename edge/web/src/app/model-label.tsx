import { isDemo, modelName } from './sessions';

/** The name of a model, and that it is only a demo when it is. */
export function ModelLabel({ id }: { id: string | undefined }) {
  const name = modelName(id);
  if (name === '') return null;
  if (!isDemo(id)) return <span class="model-name">{name}</span>;
  // A name that says it is label enough.
  if (/\bdemo\b/i.test(name)) return <span class="badge">{name}</span>;
  return (
    <>
      <span class="model-name">{name}</span>
      <span class="badge">demo</span>
    </>
  );
}
