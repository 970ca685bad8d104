import { isDemo, modelName } from './sessions';

/** The name of a model, and that it is only a demo when it is. */
export function ModelLabel({ id }: { id: string | undefined }) {
  const name = modelName(id);
  if (name === '') return null;
  if (!isDemo(id)) return <span class="model-name">{name}</span>;
  return (
    <>
      {name.toLowerCase() === 'demo' ? null : <span class="model-name">{name}</span>}
      <span class="badge">demo</span>
    </>
  );
}
